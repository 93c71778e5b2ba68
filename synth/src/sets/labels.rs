//! Fundus photographs with the signs D, G and A, each independent of the others.

use super::{Drawn, split_of};
use crate::plan::Case;
use crate::rng::{Purpose, RandomStream};
use crate::{Signs, paint_with};

pub(super) const HEADINGS: &str = "id,D,G,A";

/// Which signs picture `index` shows. In each run of eight pictures every set of signs comes once, so that all signs are in half
/// of the pictures and none tells another.
fn signs(seed: u64, index: usize) -> [bool; 3] {
    let mut draw = RandomStream::new(seed, (index / 8) as u64, Purpose::Plan);
    let set = draw.permutation(8)[index % 8];
    [0, 1, 2].map(|sign| set >> sign & 1 == 1)
}

pub(super) fn draw(size: usize, seed: u64, index: usize) -> Drawn {
    let [diabetes, glaucoma, macula] = signs(seed, index);
    let mut draw = RandomStream::new(seed, index as u64, Purpose::Signs);
    let case = match diabetes {
        true => Case {
            grade: 3,
            cells: [
                draw.count(4, 12) as u32,
                draw.count(16, 30) as u32,
                draw.count(10, 22) as u32,
                draw.count(0, 4) as u32,
            ],
        },
        false => Case {
            grade: 0,
            cells: [0; 4],
        },
    };
    let signs = Signs {
        cup: glaucoma.then(|| draw.range(0.8, 0.95)),
        drusen: macula.then(|| draw.count(45, 90)),
    };
    let photo = paint_with(size, seed, index, case, Some(&signs)).photo;
    let split = split_of(index / 8 + index % 8 * 5);
    let name = format!("eye_{index:05}.png");
    let bit = |sign: bool| u8::from(sign);
    let (d, g, a) = (bit(diabetes), bit(glaucoma), bit(macula));
    Drawn {
        pixels: photo.into_raw(),
        path: format!("images/{split}/{name}"),
        line: Some((
            match split {
                "train" => "train.csv",
                "val" => "val.csv",
                _ => "test.csv",
            },
            format!("{name},{d},{g},{a}"),
        )),
    }
}
