//! Where lesions go, and how many. Their shapes are in [`super::shapes`].

use super::canvas::{LesionMask, ScalarField};
use super::eye::Eye;
use super::noise::Noise;
use super::rng::RandomStream;
use super::shapes::{Brush, Deposit, Flame, Fluff, Spot};
use super::vessels::VesselTree;

/// Attempts at filling one class before a picture is left with fewer cells than planned.
const ATTEMPTS: usize = 600;

/// Draws the lesions of one eye, class by class.
pub(super) struct Pathology<'a> {
    eye: &'a Eye,
    tree: &'a VesselTree,
    /// Places around which lesions of all classes gather, eye frame.
    foci: Vec<[f32; 2]>,
    /// Where lesions are already: place (eye frame) and radius, design pixels.
    taken: Vec<([f32; 2], f32)>,
    draw: RandomStream,
    noise: Noise,
}

impl<'a> Pathology<'a> {
    /// Decides where this eye is ill.
    pub(super) fn new(eye: &'a Eye, tree: &'a VesselTree, mut draw: RandomStream) -> Self {
        let noise = Noise::new(draw.word());
        let mut pathology = Self {
            eye,
            tree,
            foci: Vec::new(),
            taken: Vec::new(),
            draw,
            noise,
        };
        for _ in 0..pathology.draw.count(2, 5) {
            let focus = pathology.anywhere(90.0);
            pathology.foci.push(focus);
        }
        pathology
    }

    /// Microaneurysms until they touch `cells` grid cells.
    pub(super) fn microaneurysms(
        &mut self,
        cells: u32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let vivid = self.draw.range(0.75, 1.15);
        self.fill(cells, 1.0, layer, mask, |this, _, layer, mask| {
            let radius = this.draw.skewed(2.5, 7.0, 1.5);
            let at = this.clear_of_vessels(0.55, 75.0, radius);
            let spot = Spot {
                at: this.eye.to_image(at),
                radius: radius * this.eye.scale,
                aspect: this.draw.range(1.0, 1.3),
                angle: this.draw.angle(),
                rough: 0.14,
                strength: vivid * this.draw.range(0.55, 1.15),
                softness: 0.42,
            };
            this.brush(layer, mask).spot(&spot);
        });
    }

    /// Haemorrhages (dots, blots, flames) until they touch `cells` grid cells.
    pub(super) fn haemorrhages(
        &mut self,
        cells: u32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let vivid = self.draw.range(0.8, 1.2);
        let flames = self.draw.range(0.1, 0.45);
        self.fill(cells, 1.4, layer, mask, |this, room, layer, mask| {
            let kind = this.draw.unit();
            let strength = vivid * this.draw.range(0.5, 1.2);
            if kind < flames {
                let length = this.draw.skewed(26.0, 88.0, 1.3);
                let at = this.unclaimed(0.5, 110.0, 0.3 * length);
                this.flame(at, length, strength, layer, mask);
            } else if kind < flames + 0.35 || room < 2 {
                let radius = this.draw.skewed(7.5, 14.0, 1.3);
                let at = this.clear_of_vessels(0.65, 80.0, radius);
                this.blot(at, radius, strength, layer, mask);
            } else {
                let radius = this.draw.skewed(12.0, 38.0, 1.7);
                let at = this.unclaimed(0.65, 100.0, radius);
                this.blot(at, radius, strength, layer, mask);
            }
        });
    }

    fn blot(
        &mut self,
        at: [f32; 2],
        radius: f32,
        strength: f32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let scale = self.eye.scale;
        let lobes = if radius > 14.0 {
            self.draw.count(1, 4)
        } else {
            self.draw.count(1, 2)
        };
        let spots: Vec<Spot> = (0..lobes)
            .map(|lobe| {
                let share = if lobe == 0 {
                    0.75
                } else {
                    self.draw.range(0.3, 0.6)
                };
                let away = if lobe == 0 {
                    0.0
                } else {
                    radius * (1.05 - share)
                };
                let towards = self.draw.angle();
                Spot {
                    at: self
                        .eye
                        .to_image([at[0] + away * towards.cos(), at[1] + away * towards.sin()]),
                    radius: radius * share * scale,
                    aspect: self.draw.range(1.0, 1.5),
                    angle: self.draw.angle(),
                    rough: self.draw.range(0.22, 0.42),
                    strength,
                    softness: self.draw.range(0.18, 0.34),
                }
            })
            .collect();
        self.brush(layer, mask).blot(&spots);
    }

    fn flame(
        &mut self,
        at: [f32; 2],
        length: f32,
        strength: f32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let scale = self.eye.scale;
        let direction = self.eye.nerve_fibre(at) + 0.12 * self.draw.normal();
        let flame = Flame {
            at: self.eye.to_image(at),
            angle: self.eye.direction(direction),
            half_length: 0.5 * length * scale,
            half_width: (length * self.draw.range(0.1, 0.24)).clamp(4.0, 13.0) * scale,
            bend: 0.12 * self.draw.normal(),
            strength: strength * 0.95,
        };
        self.brush(layer, mask).flame(&flame);
    }

    /// Hard exudates (scattered, clustered, in rings, in a macular star) until they touch `cells`
    /// grid cells.
    pub(super) fn hard_exudates(
        &mut self,
        cells: u32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let vivid = self.draw.range(0.62, 1.1);
        let coarse = self.draw.range(0.75, 1.5);
        self.fill(cells, 1.8, layer, mask, |this, room, layer, mask| {
            let kind = this.draw.unit();
            let centre = this.somewhere(0.8, 70.0);
            if room <= 2 || kind < 0.4 {
                let spread = if room <= 2 {
                    this.draw.range(5.0, 16.0)
                } else {
                    this.draw.range(12.0, 34.0)
                };
                let count = this.draw.count(2, 9);
                this.deposits(count, coarse, vivid, layer, mask, |draw| {
                    [
                        centre[0] + spread * draw.normal(),
                        centre[1] + spread * draw.normal(),
                    ]
                });
            } else if kind < 0.72 || room < 5 {
                let long = this.draw.range(20.0, 52.0);
                let wide = long * this.draw.range(0.35, 0.8);
                let (sin, cos) = this.draw.angle().sin_cos();
                let count = this.draw.count(8, 32);
                this.deposits(count, coarse, vivid, layer, mask, |draw| {
                    let (a, b) = (long * draw.normal(), wide * draw.normal());
                    [centre[0] + a * cos - b * sin, centre[1] + a * sin + b * cos]
                });
            } else if kind < 0.92 {
                this.circinate(centre, coarse, vivid, layer, mask);
            } else {
                this.macular_star(coarse, vivid, layer, mask);
            }
        });
    }

    /// A ring of deposits around a leaking spot.
    fn circinate(
        &mut self,
        centre: [f32; 2],
        coarse: f32,
        vivid: f32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let radius = self.draw.range(38.0, 95.0);
        let squash = self.draw.range(0.65, 1.0);
        let (start, arc) = (self.draw.angle(), self.draw.range(3.2, 6.3));
        let jitter = self.draw.range(0.05, 0.14) * radius;
        let count = (radius * arc / self.draw.range(9.0, 20.0)) as usize;
        self.deposits(count, coarse, vivid, layer, mask, |draw| {
            let angle = start + arc * draw.unit();
            let r = radius + jitter * draw.normal();
            [
                centre[0] + r * angle.cos(),
                centre[1] + squash * r * angle.sin(),
            ]
        });
    }

    /// Short rows of deposits that point at the fovea.
    fn macular_star(
        &mut self,
        coarse: f32,
        vivid: f32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let fovea = self.eye.fovea;
        let rays = self.draw.count(3, 7);
        let towards = self.draw.angle();
        for ray in 0..rays {
            let angle = towards + 0.42 * ray as f32 + 0.12 * self.draw.normal();
            let (near, far) = (self.draw.range(38.0, 60.0), self.draw.range(75.0, 130.0));
            let count = self.draw.count(3, 8);
            self.deposits(count, 0.8 * coarse, vivid, layer, mask, |draw| {
                let (r, a) = (draw.range(near, far), angle + 0.07 * draw.normal());
                [fovea[0] + r * a.cos(), fovea[1] + r * a.sin()]
            });
        }
    }

    /// `count` deposits at the eye-frame positions that `place` gives; most are small.
    fn deposits(
        &mut self,
        count: usize,
        coarse: f32,
        vivid: f32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
        place: impl Fn(&mut RandomStream) -> [f32; 2],
    ) {
        for _ in 0..count {
            let at = place(&mut self.draw);
            if !self.allowed(at, 12.0) {
                continue;
            }
            self.taken.push((at, 8.0));
            if self.draw.chance(0.14) {
                // A plaque: grains that have run together.
                let reach = coarse * self.draw.skewed(5.0, 13.0, 1.6);
                for _ in 0..self.draw.count(3, 7) {
                    let (r, angle) = (reach * self.draw.unit().sqrt(), self.draw.angle());
                    let radius = reach * self.draw.range(0.35, 0.75);
                    self.deposit(
                        [at[0] + r * angle.cos(), at[1] + r * angle.sin()],
                        radius,
                        vivid,
                        layer,
                        mask,
                    );
                }
            } else {
                let radius = coarse * self.draw.skewed(1.7, 6.0, 1.3);
                self.deposit(at, radius, vivid, layer, mask);
            }
        }
    }

    fn deposit(
        &mut self,
        at: [f32; 2],
        radius: f32,
        vivid: f32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let deposit = Deposit {
            at: self.eye.to_image(at),
            radius: radius * self.eye.scale,
            aspect: self.draw.range(1.0, 1.7),
            angle: self.draw.angle(),
            // Small deposits are thin, so they are fainter.
            strength: vivid * self.draw.range(0.5, 1.0) * (0.6 + 0.06 * radius).min(1.0),
        };
        self.brush(layer, mask).deposit(&deposit);
    }

    /// Cotton-wool spots until they touch `cells` grid cells.
    pub(super) fn soft_exudates(
        &mut self,
        cells: u32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
    ) {
        let vivid = self.draw.range(0.7, 1.1);
        self.fill(cells, 2.2, layer, mask, |this, room, layer, mask| {
            let across = if room <= 2 {
                this.draw.range(40.0, 62.0)
            } else {
                this.draw.skewed(44.0, 110.0, 1.4)
            };
            let mut at = this.somewhere(0.45, 120.0);
            for _ in 0..20 {
                let from_fovea = (at[0] - this.eye.fovea[0]).hypot(at[1] - this.eye.fovea[1]);
                if from_fovea > 0.4 * this.eye.fovea[0]
                    && this.allowed(at, 45.0)
                    && this.free(at, 0.5 * across)
                {
                    break;
                }
                at = this.anywhere(45.0);
            }
            this.taken.push((at, 0.5 * across));
            let direction = this.eye.nerve_fibre(at) + 0.35 * this.draw.normal();
            let aspect = this.draw.range(1.05, 1.7);
            let fluff = Fluff {
                at: this.eye.to_image(at),
                radius: 0.5 * across / aspect.sqrt() * this.eye.scale,
                aspect,
                angle: this.eye.direction(direction),
                strength: vivid * this.draw.range(0.6, 1.0),
            };
            this.brush(layer, mask).fluff(&fluff);
        });
    }

    /// Calls `paint(self, room, ..)` until the mask touches `wanted` cells. `typical` is how many
    /// cells one call fills: with less room than that left, the last call is made by chance, so
    /// that the mean over many images is what was wanted.
    fn fill(
        &mut self,
        wanted: u32,
        typical: f32,
        layer: &mut ScalarField,
        mask: &mut LesionMask,
        paint: impl Fn(&mut Self, u32, &mut ScalarField, &mut LesionMask),
    ) {
        for _ in 0..ATTEMPTS {
            let have = mask.cells_touched() as u32;
            if have >= wanted {
                return;
            }
            let room = wanted - have;
            if have > 0 && !self.draw.chance(room as f32 / typical) {
                return;
            }
            paint(self, room, layer, mask);
        }
    }

    fn brush<'b>(&self, layer: &'b mut ScalarField, mask: &'b mut LesionMask) -> Brush<'b>
    where
        'a: 'b,
    {
        Brush {
            eye: self.eye,
            noise: self.noise,
            layer,
            mask,
        }
    }

    /// True where a lesion may be: `margin` design pixels inside the field of view, off the disc.
    fn allowed(&self, p: [f32; 2], margin: f32) -> bool {
        let image = self.eye.to_image(p);
        self.eye.depth(image[0], image[1]) > margin * self.eye.scale
            && p[0].hypot(p[1]) > 1.2 * self.eye.disc_radius + 0.3 * margin
    }

    /// An allowed eye-frame position, uniform over the field of view.
    fn anywhere(&mut self, margin: f32) -> [f32; 2] {
        let mut p = self.eye.fovea;
        for _ in 0..40 {
            let (r, angle) = (self.eye.radius * self.draw.unit().sqrt(), self.draw.angle());
            p = self.eye.to_eye([
                self.eye.centre[0] + r * angle.cos(),
                self.eye.centre[1] + r * angle.sin(),
            ]);
            if self.allowed(p, margin) {
                break;
            }
        }
        p
    }

    /// An allowed eye-frame position: with probability `gathered` near a focus, else anywhere.
    fn somewhere(&mut self, gathered: f32, spread: f32) -> [f32; 2] {
        if !self.foci.is_empty() && self.draw.chance(gathered) {
            for _ in 0..8 {
                let focus = self.foci[self.draw.below(self.foci.len())];
                let p = [
                    focus[0] + spread * self.draw.normal(),
                    focus[1] + spread * self.draw.normal(),
                ];
                if self.allowed(p, 18.0) {
                    return p;
                }
            }
        }
        self.anywhere(18.0)
    }

    /// True when a lesion of `radius` at `p` would hardly overlap one that is there.
    fn free(&self, p: [f32; 2], radius: f32) -> bool {
        self.taken
            .iter()
            .all(|(q, r)| (p[0] - q[0]).hypot(p[1] - q[1]) > 0.85 * (r + radius))
    }

    /// Like [`Pathology::somewhere`], where no other lesion is if that can be had; claims the place.
    fn unclaimed(&mut self, gathered: f32, spread: f32, radius: f32) -> [f32; 2] {
        let mut p = self.somewhere(gathered, spread);
        for attempt in 0..24 {
            if self.free(p, radius) {
                break;
            }
            // The foci fill up: look further and further away.
            p = self.somewhere(gathered, spread * (1.0 + 0.12 * attempt as f32));
        }
        self.taken.push((p, radius));
        p
    }

    /// Like [`Pathology::unclaimed`], and beside the vessels if that can be had.
    fn clear_of_vessels(&mut self, gathered: f32, spread: f32, radius: f32) -> [f32; 2] {
        let mut p = self.unclaimed(gathered, spread, radius);
        for _ in 0..6 {
            if !self.tree.covers(p) {
                break;
            }
            self.taken.pop();
            p = self.unclaimed(gathered, spread, radius);
        }
        p
    }
}
