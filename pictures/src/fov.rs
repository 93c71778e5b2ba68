//! The field of view: the bright disc of a fundus photograph on its black ground.
//!
//! The search cuts a coarse brightness map at a level between ground and disc, takes the largest bright region as the
//! disc, and fits a circle to the part of its edge off the picture's border. Photographs cut off at the top and
//! bottom, with marker notches or with text beside the disc, are the rule, not the exception.

use crate::resample::Square;
use crate::wide::wide;

/// Longest edge of the brightness map.
const MAP_EDGE: usize = 512;

/// A square picture whose disc spans this share of it, or more, is taken whole.
const WHOLE: f64 = 0.95;

/// A bright region smaller than this share of the picture is no disc.
const MIN_DISC: f64 = 0.05;

/// Share of the edge points that must lie on the circle.
const MIN_INLIERS: f64 = 0.4;

/// The field of view of a photograph, in source pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fov {
    /// Centre of the disc, from the left edge.
    pub cx: f64,
    /// Centre of the disc, from the upper edge.
    pub cy: f64,
    /// Radius of the disc.
    pub radius: f64,
    /// What is cut out and brought to the working size.
    pub square: Square,
    /// False when no disc was found and the whole picture was taken.
    pub found: bool,
}

/// max(R, G, B) averaged over blocks.
struct Map {
    data: Vec<u8>,
    width: usize,
    height: usize,
    /// Source pixels per map pixel.
    block: usize,
}

#[derive(Clone, Copy, Debug)]
struct Circle {
    x: f64,
    y: f64,
    r: f64,
}

impl Circle {
    fn miss(&self, (x, y): (f64, f64)) -> f64 {
        ((x - self.x).hypot(y - self.y) - self.r).abs()
    }
}

/// Finds the field of view in RGB pixels `[height, width, 3]`.
pub fn detect(pixels: &[u8], width: usize, height: usize) -> Fov {
    let map = Map::new(pixels, width, height);
    let whole = whole(width, height);
    let Some(disc) = map.disc() else { return whole };
    let circle = fit(&disc, &map);
    let block = map.block as f64;
    // What is visible of the disc: the circle where one fits, else the region, within the picture.
    let (x0, x1, y0, y1) = match circle {
        Some(Circle { x, y, r }) => (x - r, x + r, y - r, y + r),
        None => disc.bounds(),
    };
    let (w, h) = (width as f64, height as f64);
    let (x0, x1) = ((x0 * block).clamp(0.0, w), (x1 * block).clamp(0.0, w));
    let (y0, y1) = ((y0 * block).clamp(0.0, h), (y1 * block).clamp(0.0, h));
    let side = (x1 - x0).max(y1 - y0).round().max(1.0);
    let (cx, cy) = circle.map_or(((x0 + x1) / 2.0, (y0 + y1) / 2.0), |c| {
        (c.x * block, c.y * block)
    });
    let radius = circle.map_or(side / 2.0, |c| c.r * block);
    let fov = Fov {
        cx,
        cy,
        radius,
        found: true,
        ..whole
    };
    if width.abs_diff(height) * 100 <= width.max(height) && side >= WHOLE * w.max(h) {
        return fov;
    }
    // The disc's centre is the square's, as far as all that is visible stays inside.
    let start = |centre: f64, from: f64, to: f64| {
        (centre - side / 2.0)
            .clamp((to - side).min(from), from)
            .round() as i64
    };
    Fov {
        square: Square {
            x: start(cx, x0, x1),
            y: start(cy, y0, y1),
            side: side as u32,
        },
        ..fov
    }
}

/// The whole picture as the field of view.
pub fn whole(width: usize, height: usize) -> Fov {
    let square = Square::around(width as u32, height as u32);
    Fov {
        cx: width as f64 / 2.0,
        cy: height as f64 / 2.0,
        radius: f64::from(square.side) / 2.0,
        square,
        found: false,
    }
}

wide! {
    /// Adds max(R, G, B) of every pixel of a row.
    fn add_light(sums: &mut [u16], row: &[u8]) {
        for (sum, [r, g, b]) in sums.iter_mut().zip(row.as_chunks::<3>().0) {
            *sum += u16::from(*r.max(g).max(b));
        }
    }
}

impl Map {
    fn new(pixels: &[u8], width: usize, height: usize) -> Self {
        let block = width.max(height).div_ceil(MAP_EDGE).max(1);
        // Four samples along a block's edge are enough for its mean.
        let step = (block / 4).max(1);
        let (map_width, map_height) = (width.div_ceil(block), height.div_ceil(block));
        let mut data = Vec::with_capacity(map_width * map_height);
        // Per column of the picture, over the rows of a block: at most 7 of them.
        let mut sums = vec![0u16; width];
        for top in (0..height).step_by(block) {
            sums.fill(0);
            let rows = (top..(top + block).min(height)).step_by(step);
            let count = rows.len() as u32;
            for y in rows {
                add_light(&mut sums, &pixels[y * width * 3..(y + 1) * width * 3]);
            }
            for columns in sums.chunks(block) {
                let columns = columns.iter().step_by(step);
                let count = count * columns.len() as u32;
                let sum: u32 = columns.map(|sum| u32::from(*sum)).sum();
                data.push((sum / count.max(1)) as u8);
            }
        }
        Self {
            data,
            width: map_width,
            height: map_height,
            block,
        }
    }

    /// The brightness that parts ground from disc. Real grounds are 0 to 30 (JPEG, stray light); a picture without
    /// ground must not be cut at its own darker parts.
    fn level(&self) -> u8 {
        let mut sorted = self.data.clone();
        sorted.sort_unstable();
        let at = |share: f64| f64::from(sorted[((sorted.len() - 1) as f64 * share) as usize]);
        let ground = at(0.01).min(30.0);
        (ground + (0.08 * (at(0.90) - ground)).max(10.0)) as u8
    }

    /// The largest 4-connected region above the level.
    fn disc(&self) -> Option<Region> {
        if self.data.is_empty() {
            return None;
        }
        let level = self.level();
        let mut seen: Vec<bool> = self.data.iter().map(|value| *value <= level).collect();
        let mut largest = Vec::new();
        for start in 0..seen.len() {
            if !seen[start] {
                let region = self.fill(start, &mut seen);
                if region.len() > largest.len() {
                    largest = region;
                }
            }
        }
        let enough = largest.len() as f64 >= MIN_DISC * self.data.len() as f64;
        enough.then(|| Region::new(&largest, self))
    }

    fn fill(&self, start: usize, seen: &mut [bool]) -> Vec<usize> {
        seen[start] = true;
        let mut region = vec![start];
        let mut next = 0;
        while next < region.len() {
            let at = region[next];
            next += 1;
            let (x, y) = (at % self.width, at / self.width);
            let neighbours = [
                (x > 0).then(|| at - 1),
                (x + 1 < self.width).then(|| at + 1),
                (y > 0).then(|| at - self.width),
                (y + 1 < self.height).then(|| at + self.width),
            ];
            for neighbour in neighbours.into_iter().flatten() {
                if !seen[neighbour] {
                    seen[neighbour] = true;
                    region.push(neighbour);
                }
            }
        }
        region
    }
}

/// First and last pixel of a region in every row and column of the map.
struct Region {
    rows: Vec<Option<(usize, usize)>>,
    columns: Vec<Option<(usize, usize)>>,
}

impl Region {
    fn new(members: &[usize], map: &Map) -> Self {
        let mut region = Self {
            rows: vec![None; map.height],
            columns: vec![None; map.width],
        };
        let widen = |span: &mut Option<(usize, usize)>, at: usize| {
            *span = Some(span.map_or((at, at), |(from, to)| (from.min(at), to.max(at))));
        };
        for member in members {
            let (x, y) = (member % map.width, member / map.width);
            widen(&mut region.rows[y], x);
            widen(&mut region.columns[x], y);
        }
        region
    }

    /// Left, right, upper and lower edge in map pixels.
    fn bounds(&self) -> (f64, f64, f64, f64) {
        let ends = |spans: &[Option<(usize, usize)>]| {
            let spans = spans.iter().flatten();
            let from = spans.clone().map(|span| span.0).min().unwrap_or(0);
            let to = spans.map(|span| span.1 + 1).max().unwrap_or(0);
            (from as f64, to as f64)
        };
        let ((x0, x1), (y0, y1)) = (ends(&self.rows), ends(&self.columns));
        (x0, x1, y0, y1)
    }

    /// Points on the region's outline, in map pixels; none where it lies on the picture's border.
    fn edge(&self, map: &Map) -> Vec<(f64, f64)> {
        let mut points = Vec::new();
        for (y, span) in self.rows.iter().enumerate() {
            let Some((from, to)) = *span else { continue };
            let y = y as f64 + 0.5;
            points.extend((from > 0).then_some((from as f64, y)));
            points.extend((to + 1 < map.width).then_some((to as f64 + 1.0, y)));
        }
        for (x, span) in self.columns.iter().enumerate() {
            let Some((from, to)) = *span else { continue };
            let x = x as f64 + 0.5;
            points.extend((from > 0).then_some((x, from as f64)));
            points.extend((to + 1 < map.height).then_some((x, to as f64 + 1.0)));
        }
        points
    }
}

/// The circle that most edge points lie on, in map pixels; `None` when too few do or when it does not suit the region.
fn fit(disc: &Region, map: &Map) -> Option<Circle> {
    let points = disc.edge(map);
    let (x0, x1, y0, y1) = disc.bounds();
    let extent = (x1 - x0).max(y1 - y0);
    if points.len() < 24 {
        return None;
    }
    let tolerance = (0.01 * extent).max(1.0);
    let on = |circle: &Circle| {
        points
            .iter()
            .filter(|p| circle.miss(**p) <= tolerance)
            .count()
    };
    // A fixed set of triples, so the same picture always gives the same circle.
    let pick = |n: u64| points[(splitmix(n) % points.len() as u64) as usize];
    let candidates =
        (0..400u64).filter_map(|n| through(pick(3 * n), pick(3 * n + 1), pick(3 * n + 2)));
    let mut circle = candidates
        .filter(|c| c.r >= 0.4 * extent && c.r <= extent)
        .map(|c| (on(&c), c))
        .max_by_key(|(count, _)| *count)?
        .1;
    for _ in 0..3 {
        let inliers: Vec<_> = points
            .iter()
            .copied()
            .filter(|p| circle.miss(*p) <= tolerance)
            .collect();
        circle = least_squares(&inliers)?;
    }
    let enough = on(&circle) as f64 >= MIN_INLIERS * points.len() as f64;
    (enough && circle.r >= 0.4 * extent && circle.r <= extent).then_some(circle)
}

/// The circle through three points.
fn through(a: (f64, f64), b: (f64, f64), c: (f64, f64)) -> Option<Circle> {
    let (bx, by, cx, cy) = (b.0 - a.0, b.1 - a.1, c.0 - a.0, c.1 - a.1);
    let d = 2.0 * (bx * cy - by * cx);
    if d.abs() < 1e-6 {
        return None;
    }
    let (b2, c2) = (bx * bx + by * by, cx * cx + cy * cy);
    let (x, y) = ((cy * b2 - by * c2) / d, (bx * c2 - cx * b2) / d);
    Some(Circle {
        x: a.0 + x,
        y: a.1 + y,
        r: x.hypot(y),
    })
}

/// Kåsa's algebraic fit (1976), about the points' mean for the sake of precision.
fn least_squares(points: &[(f64, f64)]) -> Option<Circle> {
    let n = points.len() as f64;
    let (mx, my) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (mut xx, mut yy, mut xy, mut xz, mut yz, mut z) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for p in points {
        let (x, y) = (p.0 - mx, p.1 - my);
        let square = x * x + y * y;
        xx += x * x;
        yy += y * y;
        xy += x * y;
        xz += x * square;
        yz += y * square;
        z += square;
    }
    let d = 2.0 * (xx * yy - xy * xy);
    if d.abs() < 1e-9 {
        return None;
    }
    let (x, y) = ((xz * yy - yz * xy) / d, (yz * xx - xz * xy) / d);
    Some(Circle {
        x: mx + x,
        y: my + y,
        r: (x * x + y * y + z / n).sqrt(),
    })
}

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
pub(crate) fn splitmix(n: u64) -> u64 {
    let z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disc shaded towards its rim on a ground of `ground`, in a picture of `width x height`.
    fn photo(width: usize, height: usize, disc: Circle, ground: u8) -> Vec<u8> {
        let mut pixels = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for x in 0..width {
                let from_centre = (x as f64 + 0.5 - disc.x).hypot(y as f64 + 0.5 - disc.y) / disc.r;
                let value = if from_centre <= 1.0 {
                    (150.0 - 90.0 * from_centre) as u8
                } else {
                    ground
                };
                pixels.extend([value, value / 2, value / 4]);
            }
        }
        pixels
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_disc_is_found_wherever_it_lies(
            r in 0.30f64..0.62, dx in -0.1f64..0.1, dy in -0.08f64..0.08, width in 600usize..900, ground in 0u8..25,
        ) {
            let height = width * 3 / 4;
            let disc = Circle { x: width as f64 * (0.5 + dx), y: height as f64 * (0.5 + dy), r: r * height as f64 };
            let fov = detect(&photo(width, height, disc, ground), width, height);
            let near = |a: f64, b: f64| (a - b).abs() <= 0.012 * width as f64;
            prop_assert!(fov.found);
            prop_assert!(near(fov.cx, disc.x) && near(fov.cy, disc.y) && near(fov.radius, disc.r), "{:?} {:?}", fov, disc);
            // All that is visible of the disc is inside the square, and not much else.
            let visible_w = (disc.x + disc.r).min(width as f64) - (disc.x - disc.r).max(0.0);
            let visible_h = (disc.y + disc.r).min(height as f64) - (disc.y - disc.r).max(0.0);
            prop_assert!(near(f64::from(fov.square.side), visible_w.max(visible_h)), "{:?} {:?}", fov, disc);
        }
    }

    #[test]
    fn a_disc_cut_at_top_and_bottom_is_centred() {
        // The proportions of an IDRiD photograph.
        let disc = Circle {
            x: 425.0,
            y: 350.0,
            r: 428.0,
        };
        let mut pixels = photo(852, 712, disc, 0);
        // A marker notch at the rim, and bright text outside.
        for y in 100..160 {
            for x in 770..830 {
                pixels[(y * 852 + x) * 3..][..3].fill(0);
            }
        }
        for y in 4..20 {
            for x in 4..60 {
                pixels[(y * 852 + x) * 3..][..3].fill(220);
            }
        }
        let fov = detect(&pixels, 852, 712);
        assert!(
            (fov.cx - 425.0).abs() < 4.0
                && (fov.cy - 350.0).abs() < 4.0
                && (fov.radius - 428.0).abs() < 4.0,
            "{fov:?}"
        );
        assert!((850..=852).contains(&fov.square.side), "{fov:?}");
        assert!(
            (fov.square.y + 76).abs() <= 3 && fov.square.x.abs() <= 2,
            "{fov:?}"
        );
    }

    #[test]
    fn a_square_picture_full_of_disc_is_taken_whole() {
        let disc = Circle {
            x: 640.0,
            y: 645.0,
            r: 625.0,
        };
        let fov = detect(&photo(1280, 1280, disc, 3), 1280, 1280);
        assert_eq!(
            fov.square,
            Square {
                x: 0,
                y: 0,
                side: 1280
            }
        );
        assert!(fov.found);
    }

    #[test]
    fn pictures_without_a_disc_are_taken_whole() {
        for value in [0, 90] {
            let fov = detect(&vec![value; 300 * 200 * 3], 300, 200);
            assert_eq!(
                fov.square,
                Square {
                    x: 0,
                    y: -50,
                    side: 300
                }
            );
        }
        let fov = detect(&[7, 7, 7], 1, 1);
        assert_eq!(
            fov.square,
            Square {
                x: 0,
                y: 0,
                side: 1
            }
        );
    }
}
