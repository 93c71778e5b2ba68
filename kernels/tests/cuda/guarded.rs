//! Buffers with guard zones: their surroundings read as NaN, and must stay intact.

use std::marker::PhantomData;

use bytemuck::Pod;

use crate::runner::Runner;

/// Bytes before and after a buffer.
const GUARD: usize = 256;
/// A NaN as f32 and bf16, far too large as an index, white as a pixel.
const POISON: u8 = 0xFF;

/// `[T]` in a runner's memory. Dropping it checks its guards, and for an input also its content.
pub struct Guarded<'a, R: Runner, T: Pod> {
    runner: &'a R,
    block: R::Block,
    _permit: R::Permit,
    /// Bytes from the block's start.
    start: usize,
    bytes: usize,
    /// The bytes of an input, which must not change; none for an output.
    input: Option<Vec<u8>>,
    element: PhantomData<T>,
}

impl<'a, R: Runner, T: Pod> Guarded<'a, R, T> {
    /// `values` that a kernel only reads, `shift` elements away from 256-byte alignment.
    pub fn input(runner: &'a R, values: &[T], shift: usize) -> Self {
        let mut guarded = Self::inout(runner, values, shift);
        guarded.input = Some(bytemuck::cast_slice(values).to_vec());
        guarded
    }

    /// `values` that a kernel changes.
    pub fn inout(runner: &'a R, values: &[T], shift: usize) -> Self {
        Self::with_bytes(runner, bytemuck::cast_slice(values), shift)
    }

    /// `n` elements that a kernel writes, poisoned.
    pub fn output(runner: &'a R, n: usize, shift: usize) -> Self {
        Self::with_bytes(runner, &vec![POISON; n * size_of::<T>()], shift)
    }

    fn with_bytes(runner: &'a R, bytes: &[u8], shift: usize) -> Self {
        let start = GUARD + shift * size_of::<T>();
        let mut all = vec![POISON; start];
        all.extend(bytes);
        all.resize(all.len() + GUARD, POISON);
        let block = runner.block(&all);
        Self {
            _permit: runner.permit(R::address(&block) + start as u64, bytes.len()),
            runner,
            block,
            start,
            bytes: bytes.len(),
            input: None,
            element: PhantomData,
        }
    }

    pub fn address(&self) -> u64 {
        R::address(&self.block) + self.start as u64
    }

    pub fn read(&self) -> Vec<T> {
        let all = self.runner.read(&self.block);
        let (before, rest) = all.split_at(self.start);
        let (content, after) = rest.split_at(self.bytes);
        for (side, guard) in [("before", before), ("after", after)] {
            let hit = guard.iter().position(|&byte| byte != POISON);
            assert_eq!(
                hit, None,
                "a kernel wrote {side} its buffer, at byte {hit:?}"
            );
        }
        content
            .chunks_exact(size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .collect()
    }
}

impl<R: Runner, T: Pod> Drop for Guarded<'_, R, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let content = self.read();
        if let Some(input) = &self.input {
            assert!(
                bytemuck::cast_slice::<T, u8>(&content) == &input[..],
                "a kernel changed its input"
            );
        }
    }
}

/// Fails at the first element with other bits.
pub fn assert_bits<T: Pod + std::fmt::Debug>(what: &str, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (k, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            bytemuck::bytes_of(got) == bytemuck::bytes_of(want),
            "{what}[{k}]: {got:?} instead of {want:?}"
        );
    }
}
