//! Operations and their kernel launches as data, without a GPU.

use super::error::Result;
use crate::error::Error;

/// Most blocks along y and along z that CUDA allows.
pub(super) const MOST_BLOCKS_YZ: usize = 65_535;
/// Most blocks along x that CUDA allows.
const MOST_BLOCKS_X: usize = i32::MAX as usize;

/// An operation on device memory.
pub trait Op {
    /// Returns the launches, in the order in which one stream must run them; none if there is no work.
    ///
    /// # Errors
    ///
    /// The arguments do not fit together; the message is the CPU twin's.
    fn launches(&self) -> Result<Vec<Launch>>;
}

/// One kernel launch: the same for a GPU and for the emulator of the tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    kernel: &'static str,
    grid: [u32; 3],
    threads: u32,
    values: Vec<u64>,
    sizes: Vec<u8>,
}

impl Launch {
    /// `kernel` on a grid of blocks of `threads` threads each.
    pub(crate) fn new(
        kernel: &'static str,
        what: &'static str,
        grid: [usize; 3],
        threads: u32,
    ) -> Result<Self> {
        let limits = [MOST_BLOCKS_X, MOST_BLOCKS_YZ, MOST_BLOCKS_YZ];
        if (0..3).any(|axis| grid[axis] > limits[axis]) {
            return Err(Error::Argument {
                what,
                limit: "a grid of 2147483647 x 65535 x 65535 blocks",
                actual: format!("{kernel} on {} x {} x {}", grid[0], grid[1], grid[2]),
                help: "split the batch into several calls",
            }
            .into());
        }
        Ok(Self {
            kernel,
            grid: grid.map(|blocks| blocks as u32),
            threads,
            values: Vec::new(),
            sizes: Vec::new(),
        })
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.values.push(value);
        self.sizes.push(8);
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.values.push(u64::from(value));
        self.sizes.push(4);
        self
    }

    pub(crate) fn f32(self, value: f32) -> Self {
        self.u32(value.to_bits())
    }

    pub(crate) fn flag(self, value: bool) -> Self {
        self.u32(u32::from(value))
    }

    /// Name of the kernel.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Blocks along x, y and z.
    #[must_use]
    pub fn grid(&self) -> [u32; 3] {
        self.grid
    }

    /// Threads of a block, a multiple of 32.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Bytes of the arguments, each in the lowest bytes of a word.
    #[must_use]
    pub fn values(&self) -> &[u64] {
        &self.values
    }

    /// How many bytes of each of [`Self::values`] are the argument's.
    #[must_use]
    pub fn sizes(&self) -> &[u8] {
        &self.sizes
    }
}

/// Refuses a null or misaligned address.
pub(crate) fn address(what: &'static str, address: u64, alignment: u64) -> Result<()> {
    let problem = if address == 0 {
        "null".to_owned()
    } else if !address.is_multiple_of(alignment) {
        format!(
            "{address:#x}, {} beyond a multiple of {alignment}",
            address % alignment
        )
    } else {
        return Ok(());
    };
    Err(Error::Argument {
        what,
        limit: "a device address aligned for its element",
        actual: problem,
        help: "pass the data pointer of a contiguous tensor on the device of these kernels",
    }
    .into())
}

/// `value` as u32; an error if a kernel's index cannot count so far.
pub(crate) fn index32(what: &'static str, value: usize) -> Result<u32> {
    match u32::try_from(value) {
        Ok(value) if value <= i32::MAX as u32 => Ok(value),
        _ => Err(Error::Argument {
            what,
            limit: "0 to 2147483647",
            actual: value.to_string(),
            help: "split the work into several calls",
        }
        .into()),
    }
}

/// Whether 16-byte accesses can be made at all of these addresses.
pub(crate) fn wide(addresses: &[u64]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(16))
}
