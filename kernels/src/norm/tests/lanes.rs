//! Rounding to bf16, and SiLU, on every instruction set.

use super::Numbers;
use crate::norm::lanes::{Isa, Kernel, Lanes, sweep};
use crate::norm::silu::{silu, silu_gradient};
use half::bf16;
use std::ops::Range;

/// Stores f32 as bf16, rounded: `to = bf16(from)`.
struct Round<'a> {
    from: &'a [f32],
    to: &'a mut [bf16],
}

impl Kernel for Round<'_> {
    const TILE_ROWS: usize = usize::MAX;

    fn extent(&self) -> (usize, usize) {
        assert_eq!(self.from.len(), self.to.len());
        (1, self.from.len())
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, _rows: Range<usize>, channel: usize) {
        for k in 0..N {
            // SAFETY: inside both buffers.
            unsafe {
                let at = channel + k * L::WIDTH;
                let values = L::load_split(self.from.as_ptr().add(at));
                values.store_bf16(self.to.as_mut_ptr().add(at));
            }
        }
    }
}

#[test]
fn rounds_to_nearest_even() {
    let mut values = Vec::new();
    let mut numbers = Numbers::new(11);
    for high in 0..=u16::MAX {
        let random = numbers.below(1 << 16) as u32;
        for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, random] {
            values.push(f32::from_bits((u32::from(high) << 16) | low));
        }
    }
    for isa in Isa::available() {
        let mut rounded = vec![bf16::ZERO; values.len()];
        let (from, to) = (values.as_slice(), rounded.as_mut_slice());
        sweep(isa, &mut Round { from, to });
        for (value, actual) in values.iter().zip(rounded) {
            let expected = if value.is_subnormal() {
                bf16::from_f32(0f32.copysign(*value))
            } else {
                bf16::from_f32(*value)
            };
            let (a, e) = (actual.to_bits(), expected.to_bits());
            assert_eq!(a, e, "{isa:?}: {value:e} ({:08x})", value.to_bits());
        }
    }
}

/// Adds each row to per-channel sums: split order must return to memory order.
struct Sum<'a> {
    x: &'a [bf16],
    sums: &'a mut [f32],
}

impl Kernel for Sum<'_> {
    const TILE_ROWS: usize = 2;

    fn extent(&self) -> (usize, usize) {
        (self.x.len() / self.sums.len(), self.sums.len())
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, rows: Range<usize>, channel: usize) {
        for k in 0..N {
            for row in rows.clone() {
                let at = channel + k * L::WIDTH;
                // SAFETY: inside both buffers.
                unsafe {
                    let sum = L::load_split(self.sums.as_ptr().add(at));
                    let x = L::load_bf16(self.x.as_ptr().add(row * self.sums.len() + at));
                    sum.add(x).store_split(self.sums.as_mut_ptr().add(at));
                }
            }
        }
    }
}

#[test]
fn sweeps_every_row_and_channel_once_in_order() {
    for isa in Isa::available() {
        for channels in [1, 2, 7, 8, 31, 64, 77, 200] {
            let rows = 5;
            let x: Vec<bf16> = (0..rows * channels)
                .map(|i| bf16::from_f32((i % 251) as f32))
                .collect();
            let mut sums = vec![0.5; channels];
            sweep(
                isa,
                &mut Sum {
                    x: &x,
                    sums: &mut sums,
                },
            );
            for (c, sum) in sums.iter().enumerate() {
                let column = (0..rows).map(|r| x[r * channels + c].to_f32());
                assert_eq!(*sum, 0.5 + column.sum::<f32>(), "{isa:?} {channels} {c}");
            }
        }
    }
}

/// SiLU of `from`, or its derivative.
struct Curve<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
    derivative: bool,
}

impl Kernel for Curve<'_> {
    const TILE_ROWS: usize = usize::MAX;

    fn extent(&self) -> (usize, usize) {
        assert_eq!(self.from.len(), self.to.len());
        (1, self.from.len())
    }

    #[inline(always)]
    unsafe fn strip<L: Lanes, const N: usize>(&mut self, _rows: Range<usize>, channel: usize) {
        for k in 0..N {
            // SAFETY: inside both buffers.
            unsafe {
                let at = channel + k * L::WIDTH;
                let z = L::load(self.from.as_ptr().add(at));
                let value = if self.derivative {
                    silu_gradient(L::splat(1.0), z)
                } else {
                    silu(z)
                };
                value.store(self.to.as_mut_ptr().add(at));
            }
        }
    }
}

#[test]
fn silu_and_its_derivative_are_exact_to_some_units_of_the_last_place() {
    let mut z: Vec<f32> = (-80_000..80_000).map(|i| i as f32 * 1.1e-3).collect();
    z.extend([
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
        1e-30,
        -1e-30,
        87.0,
        -87.0,
        1e30,
        f32::MAX,
    ]);
    let mut bits = Vec::new();
    for isa in Isa::available() {
        let mut results = Vec::new();
        for derivative in [false, true] {
            let mut to = vec![0.0; z.len()];
            let mut curve = Curve {
                from: &z,
                to: &mut to,
                derivative,
            };
            sweep(isa, &mut curve);
            for (&z, &got) in z.iter().zip(&to) {
                let z = f64::from(z);
                let s = 1.0 / (1.0 + (-z).exp());
                let rest = 1.0 / (1.0 + z.exp());
                let (expected, size) = if derivative {
                    (s + z * s * rest, s + z.abs() * s)
                } else {
                    (z * s, z.abs() * s)
                };
                let error = (f64::from(got) - expected).abs();
                // Below -87, where SiLU is less than 1.5e-36, the exponent is limited.
                assert!(
                    error <= 6e-7 * size + 2e-36,
                    "{isa:?} {derivative}: {z}: {got} for {expected}"
                );
            }
            results.extend(to.iter().map(|v| v.to_bits()));
        }
        bits.push(results);
    }
    assert!(
        bits.iter().all(|b| *b == bits[0]),
        "instruction sets differ"
    );
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for isa in Isa::available() {
        let mut to = [0.0; 3];
        let mut curve = Curve {
            from: &odd,
            to: &mut to,
            derivative: false,
        };
        sweep(isa, &mut curve);
        assert!(to.iter().all(|v| !v.is_finite()), "{isa:?}: {to:?}");
    }
}
