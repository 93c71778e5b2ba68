//! Draws camera photographs as the models see them, with black cells marked:
//! `cargo run --release -p fovea-dataset --example photos -- FOLDER OUT.png`

use std::path::Path;
use std::time::Instant;

use fovea_dataset::{MosaicOptions, list_photos, load_photo, mosaic_photos, prepare_photo};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, out] = &args[..] else {
        return Err("usage: photos FOLDER OUT.png".into());
    };
    for found in list_photos(Path::new(folder))? {
        let begin = Instant::now();
        let photo = load_photo(&found.path)?;
        let loaded = begin.elapsed();
        let fov = prepare_photo(&photo, 1280, 128)?.fov;
        println!(
            "{}: {fov:?}, read in {loaded:.0?}, prepared in {:.0?}",
            found.id,
            begin.elapsed() - loaded
        );
    }
    let options = MosaicOptions {
        columns: 4,
        tile: 320,
        ..MosaicOptions::default()
    };
    mosaic_photos(Path::new(folder), Path::new(out), 1280, 128, &options)?;
    Ok(())
}
