//! Pictures of a dataset's contents: whole images with their grid and black cells, and patches with labels and
//! lesion outlines. For a person to check before training.

mod draw;

use std::path::Path;

use draw::{Colour, MosaicCanvas};
use fovea_pictures::resample::{Plane, Square, resample};
use fovea_task::{Class, Kind, Label, Level, Task};

use crate::{
    BadFile, Dataset, Error, ImageView, PhotoFile, Result, Split, list_photos, load_photo,
    prepare_photo,
};

const GROUND: Colour = [24, 24, 28];
const INK: Colour = [235, 235, 235];
const FAINT: Colour = [150, 150, 155];
const BLACK_CELL: Colour = [60, 110, 255];

const MARGIN: i64 = 24;
const GAP: i64 = 10;
const TEXT: f32 = 20.0;
const LINE: i64 = 26;

/// How [`mosaic`] and [`mosaic_photos`] choose and arrange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MosaicOptions {
    /// Patches in a row.
    pub columns: usize,
    /// Rows per kind of patch (each class, healthy, black).
    pub rows: usize,
    /// Another seed, other patches.
    pub seed: u64,
    /// Edge of a patch on the picture, in pixels.
    pub tile: u32,
}

impl Default for MosaicOptions {
    fn default() -> Self {
        Self {
            columns: 8,
            rows: 1,
            seed: 0,
            tile: 200,
        }
    }
}

impl MosaicOptions {
    fn check(&self) -> Result<()> {
        let limits = [
            ("columns", self.columns, 1..=32),
            ("rows", self.rows, 1..=16),
            ("tile", self.tile as usize, 32..=1024),
        ];
        for (option, value, limit) in limits {
            if !limit.contains(&value) {
                return Err(Error::Option {
                    option,
                    value: value.to_string(),
                    limit: format!("must be {} to {}", limit.start(), limit.end()),
                    help: "leave it out for a picture that fits a screen".to_owned(),
                });
            }
        }
        Ok(())
    }

    fn width(&self) -> i64 {
        2 * MARGIN + self.columns as i64 * (i64::from(self.tile) + GAP) - GAP
    }
}

/// A prepared image as the pictures need it.
struct Subject<'a> {
    caption: String,
    view: ImageView<'a>,
    mask: Option<&'a [u8]>,
    /// Of the mask's bits.
    classes: &'a [Class],
    black: &'a [u8],
    grid: usize,
}

/// A cell of an image.
#[derive(Clone, Copy)]
struct Cell {
    image: usize,
    row: usize,
    column: usize,
}

/// Draws whole images and, per kind, some patches of `data` with their labels and lesion outlines, to the PNG `out`.
pub fn mosaic(data: &Dataset, out: &Path, options: &MosaicOptions) -> Result<()> {
    options.check()?;
    if data.is_empty() {
        return Err(Error::Empty {
            path: data.dir().to_owned(),
            looked_for: "images".to_owned(),
            help: "prepare a dataset with images".to_owned(),
        });
    }
    let min = data.manifest().recipe.min_lesion_pixels;
    let labels: Vec<Vec<Label>> = (0..data.len()).map(|i| data.patch_labels(i, min)).collect();
    let kinds = kinds(data, &labels, options);

    let shown: Vec<usize> = spread(data.len(), options.columns / 2, options.seed);
    let big = 2 * i64::from(options.tile) + GAP;
    let tile = i64::from(options.tile);
    let rows: i64 = kinds
        .iter()
        .map(|(_, _, cells)| cells.len().div_ceil(options.columns) as i64)
        .sum();
    let height = MARGIN
        + 2 * LINE
        + big
        + LINE
        + kinds.len() as i64 * LINE * 2
        + rows * (tile + LINE + GAP)
        + MARGIN;
    let mut canvas = MosaicCanvas::new(options.width() as u32, height as u32, GROUND);
    let mut y = legend(
        &mut canvas,
        &match data.patch() {
            0 => format!("{} images of {} pixels", data.len(), data.size()),
            patch => format!("{} images, patches of {patch} pixels", data.len()),
        },
        data.task().cell_classes(),
        data.grid() > 0,
    );

    for (column, &i) in shown.iter().enumerate() {
        let x = MARGIN + column as i64 * (big + GAP);
        draw_subject(&mut canvas, (x, y), big, &subject(data, i));
    }
    y += big + LINE;
    for (name, colour, cells) in kinds {
        y += LINE / 2;
        canvas.text((MARGIN, y), TEXT + 2.0, colour, &name);
        y += LINE + LINE / 2;
        for line in cells.chunks(options.columns) {
            for (column, &cell) in line.iter().enumerate() {
                let x = MARGIN + column as i64 * (tile + GAP);
                let label = labels[cell.image].get(cell.row * data.grid() + cell.column);
                draw_patch(&mut canvas, (x, y), tile, data, cell, label.copied());
            }
            y += tile + LINE + GAP;
        }
    }
    canvas.save(out)
}

/// Draws each photograph of the folder `photos` as [`prepare_photo`] sees it, with its grid and black cells.
///
/// # Errors
/// [`Error::BadPhotos`] names those that cannot be read; the picture is drawn all the same, with a gap for each.
pub fn mosaic_photos(
    photos: &Path,
    out: &Path,
    size: u32,
    patch: u32,
    options: &MosaicOptions,
) -> Result<()> {
    options.check()?;
    let found = list_photos(photos)?;
    let columns = (options.columns / 2).max(1);
    let big = 2 * i64::from(options.tile) + GAP;
    let rows = found.len().div_ceil(columns) as i64;
    let height = MARGIN + 2 * LINE + rows * (big + LINE + GAP) + MARGIN;
    if height > 60_000 {
        return Err(Error::Option {
            option: "photographs",
            value: found.len().to_string(),
            limit: format!(
                "one picture holds {}",
                columns as i64 * (60_000 / (big + LINE + GAP) - 1)
            ),
            help: "give a folder with fewer, or prepare them as a dataset".to_owned(),
        });
    }
    let mut canvas = MosaicCanvas::new(options.width() as u32, height as u32, GROUND);
    let lesions = Task::lesions();
    let top = legend(
        &mut canvas,
        &format!("{} photographs, patches of {patch} pixels", found.len()),
        lesions.cell_classes(),
        true,
    );
    let mut bad = Vec::new();
    for (n, PhotoFile { path, id: name }) in found.iter().enumerate() {
        let x = MARGIN + (n % columns) as i64 * (big + GAP);
        let y = top + (n / columns) as i64 * (big + LINE + GAP);
        let photo = match load_photo(path) {
            Ok(photo) => prepare_photo(&photo, size, patch)?,
            Err(error) => {
                bad.push(BadFile::of(path, &error));
                canvas.frame((x - 1, y - 1), big + 2, big + 2, FAINT);
                let caption = format!("{name}  cannot be read");
                let caption = canvas.fitted(TEXT - 4.0, big as f32, &caption);
                canvas.text((x, y + big + 4), TEXT - 4.0, INK, &caption);
                continue;
            }
        };
        let size = size as usize;
        let black = photo.black.iter().filter(|black| **black == 1).count();
        let subject = Subject {
            caption: format!("{name}  {black} of {} black", photo.black.len()),
            view: ImageView {
                data: &photo.pixels,
                height: size,
                width: size,
            },
            mask: None,
            classes: &[],
            black: &photo.black,
            grid: size / patch as usize,
        };
        draw_subject(&mut canvas, (x, y), big, &subject);
    }
    let total = found.len();
    if bad.len() < total {
        canvas.save(out)?;
    }
    match bad {
        none if none.is_empty() => Ok(()),
        files => Err(Error::BadPhotos { total, files }),
    }
}

fn subject(data: &Dataset, i: usize) -> Subject<'_> {
    let entry = &data.manifest().images[i];
    let labels = data.task().at(Level::Image).zip(&entry.labels);
    let labels: Vec<String> = labels
        .map(|(target, label)| target.describe(*label))
        .collect();
    Subject {
        caption: format!(
            "{} {}  {}",
            entry.id,
            entry.split.map_or("no split", Split::name),
            labels.join(", ")
        ),
        view: data.image(i),
        mask: data.mask(i),
        classes: data.task().cell_classes(),
        black: data.black(i),
        grid: data.grid(),
    }
}

/// Some cells of each class, healthy ones and black ones; kinds without cells are left out.
fn kinds(
    data: &Dataset,
    labels: &[Vec<Label>],
    options: &MosaicOptions,
) -> Vec<(String, Colour, Vec<Cell>)> {
    let wanted = options.columns * options.rows;
    let choose = |salt: u64, keep: &dyn Fn(Option<Label>, u8) -> bool| {
        let mut cells = Vec::new();
        for (image, labels) in labels.iter().enumerate() {
            let black = data.black(image);
            let kept =
                (0..black.len()).filter(|&cell| keep(labels.get(cell).copied(), black[cell]));
            cells.extend(kept.map(|cell| Cell {
                image,
                row: cell / data.grid(),
                column: cell % data.grid(),
            }));
        }
        let total = cells.len();
        let chosen: Vec<Cell> = spread(total, wanted, options.seed ^ salt)
            .into_iter()
            .map(|i| cells[i])
            .collect();
        (total, chosen)
    };
    let mut kinds = Vec::new();
    let target = data.task().cells();
    for (number, class) in data.task().cell_classes().iter().enumerate() {
        let has = |label: Option<Label>, _| {
            target
                .zip(label)
                .is_some_and(|(target, label)| target.has(label, number))
        };
        let (total, cells) = choose(number as u64 + 1, &has);
        kinds.push((
            format!("{}: {total} patches", class.name),
            class.colour,
            cells,
        ));
    }
    let is_healthy = |label: Option<Label>| match target {
        Some(target) => target.kind == Kind::AnyOf && label == Some(Label(0)),
        None => true,
    };
    let (total, cells) = choose(5, &|label, black| is_healthy(label) && black == 0);
    let name = if target.is_some() {
        "healthy, not black"
    } else {
        "not black"
    };
    kinds.push((format!("{name}: {total} patches"), INK, cells));
    let (total, cells) = choose(6, &|_, black| black == 1);
    kinds.push((format!("black: {total} patches"), BLACK_CELL, cells));
    kinds.retain(|(_, _, cells)| !cells.is_empty());
    kinds
}

/// Up to `wanted` of `0..total`: one from each of as many equal parts, which one by the seed; ascending.
fn spread(total: usize, wanted: usize, seed: u64) -> Vec<usize> {
    let wanted = wanted.min(total);
    let one = |part: usize| {
        let (from, to) = (part * total / wanted, (part + 1) * total / wanted);
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&seed.to_le_bytes())
            .update(&(part as u64).to_le_bytes());
        let hash = hasher.finalize();
        let draw = u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]));
        from + (draw % (to - from) as u64) as usize
    };
    (0..wanted).map(one).collect()
}

/// The first line: what this is, and what the colours mean. The y below it.
fn legend(canvas: &mut MosaicCanvas, what: &str, classes: &[Class], has_cells: bool) -> i64 {
    let mut x = canvas.text((MARGIN, MARGIN), TEXT, INK, what) + 40;
    for class in classes {
        canvas.fill((x, MARGIN + 3), 14, 14, class.colour, 1.0);
        x = canvas.text((x + 20, MARGIN), TEXT, INK, &class.name) + 24;
    }
    if has_cells {
        canvas.fill((x, MARGIN + 3), 14, 14, BLACK_CELL, 0.6);
        canvas.text((x + 20, MARGIN), TEXT, INK, "black cell");
    }
    MARGIN + LINE * 3 / 2
}

/// A whole image, shrunk to `edge` pixels, with grid, lesions and black cells, and its caption below.
fn draw_subject(canvas: &mut MosaicCanvas, (x, y): (i64, i64), edge: i64, subject: &Subject) {
    let size = subject.view.height;
    let mut plane = resample(
        Plane {
            data: subject.view.data,
            width: size,
            height: size,
            channels: 3,
        },
        Square {
            x: 0,
            y: 0,
            side: size as u32,
        },
        edge as usize,
    );
    if let Some(mask) = subject.mask {
        outline_lesions(&mut plane, mask, subject.classes, size, edge as usize);
    }
    for (i, pixel) in plane.chunks_exact(3).enumerate() {
        canvas.set(
            x + i as i64 % edge,
            y + i as i64 / edge,
            [pixel[0], pixel[1], pixel[2]],
        );
    }
    let grid = subject.grid as i64;
    let line = |n: i64| n * edge / grid;
    for (cell, black) in subject.black.iter().enumerate() {
        let (row, column) = (cell as i64 / grid, cell as i64 % grid);
        let corner = (x + line(column), y + line(row));
        let (width, height) = (line(column + 1) - line(column), line(row + 1) - line(row));
        if *black == 1 {
            canvas.fill(corner, width, height, BLACK_CELL, 0.45);
        }
        // Grid lines that let the picture through.
        canvas.fill(corner, width, 1, [255; 3], 0.18);
        canvas.fill(corner, 1, height, [255; 3], 0.18);
    }
    canvas.frame((x - 1, y - 1), edge + 2, edge + 2, FAINT);
    let caption = canvas.fitted(TEXT - 4.0, edge as f32, &subject.caption);
    canvas.text((x, y + edge + 4), TEXT - 4.0, INK, &caption);
}

/// Draws the outlines of the lesions into a shrunken image; a lesion of one pixel still colours one.
fn outline_lesions(plane: &mut [u8], mask: &[u8], classes: &[Class], size: usize, edge: usize) {
    for (i, bits) in mask.iter().enumerate().filter(|(_, bits)| **bits != 0) {
        let (x, y) = (i % size, i / size);
        let beside = |inside: bool, step: isize| {
            if inside {
                mask[i.wrapping_add_signed(step)]
            } else {
                0
            }
        };
        let row = size as isize;
        let around = [
            beside(x > 0, -1),
            beside(x + 1 < size, 1),
            beside(y > 0, -row),
            beside(y + 1 < size, row),
        ];
        let border = bits & !around.iter().fold(0xff, |all, bits| all & bits);
        if let Some(colour) = colour_of(border, classes) {
            let at = (y * edge / size * edge + x * edge / size) * 3;
            plane[at..at + 3].copy_from_slice(&colour);
        }
    }
}

/// The colour of the first class among `bits`.
fn colour_of(bits: u8, classes: &[Class]) -> Option<Colour> {
    Some(classes.get(bits.trailing_zeros() as usize)?.colour)
}

/// One patch, enlarged, with the outlines of its lesions, and its place and label below.
fn draw_patch(
    canvas: &mut MosaicCanvas,
    (x, y): (i64, i64),
    tile: i64,
    data: &Dataset,
    cell: Cell,
    label: Option<Label>,
) {
    let view = data.image(cell.image);
    let mask = data.mask(cell.image);
    let patch = data.patch();
    let (left, top) = (cell.column * patch, cell.row * patch);
    let square = Square {
        x: left as i64,
        y: top as i64,
        side: patch as u32,
    };
    let plane = Plane {
        data: view.data,
        width: view.width,
        height: view.height,
        channels: 3,
    };
    let pixels = resample(plane, square, tile as usize);
    // Class bits under a pixel of the tile; nothing outside the patch.
    let bits = |dx: i64, dy: i64| -> u8 {
        if !(0..tile).contains(&dx) || !(0..tile).contains(&dy) {
            return 0;
        }
        let (column, row) = (
            dx as usize * patch / tile as usize,
            dy as usize * patch / tile as usize,
        );
        mask.map_or(0, |mask| mask[(top + row) * view.width + left + column])
    };
    for dy in 0..tile {
        for dx in 0..tile {
            let at = ((dy * tile + dx) * 3) as usize;
            canvas.set(x + dx, y + dy, [pixels[at], pixels[at + 1], pixels[at + 2]]);
            let here = bits(dx, dy);
            // The outline runs just outside the lesion, so that small ones stay visible.
            let around = bits(dx - 1, dy) | bits(dx + 1, dy) | bits(dx, dy - 1) | bits(dx, dy + 1);
            let outline = around & !here;
            if let Some(colour) = colour_of(outline, data.task().cell_classes()) {
                canvas.set(x + dx, y + dy, colour);
            }
        }
    }
    let id = &data.manifest().images[cell.image].id;
    let black = data.black(cell.image)[cell.row * data.grid() + cell.column] == 1;
    let names = match data.task().cells().zip(label) {
        Some((target, label)) if !black || target.kind == Kind::OneOf || label != Label(0) => {
            target.describe(label)
        }
        _ if black => "black".to_owned(),
        _ => String::new(),
    };
    let text = format!("{id} r{} c{}  {names}", cell.row, cell.column);
    let caption = canvas.fitted(TEXT - 4.0, tile as f32, &text);
    canvas.text((x, y + tile + 4), TEXT - 4.0, INK, &caption);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_distinct_and_in_range() {
        for (total, wanted) in [(0, 5), (3, 8), (100, 8), (8, 8)] {
            let chosen = spread(total, wanted, 7);
            assert_eq!(chosen.len(), wanted.min(total));
            assert!(
                chosen.windows(2).all(|pair| pair[0] < pair[1])
                    && chosen.iter().all(|i| *i < total)
            );
        }
    }
}
