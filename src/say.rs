//! Standard output. `println!` panics when the reader has left or the disk is full; here that is an error like any
//! other.

use std::fmt::Arguments;
use std::io::{self, Write};

/// The error of a line that could not be written to standard output.
#[derive(Debug)]
pub struct Unsaid(io::Error);

impl Unsaid {
    /// Whether the reader has left, as in `fovea status RUN | head -1`: that is no failure.
    pub fn reader_left(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

impl std::fmt::Display for Unsaid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cannot write to standard output: {}\n  help: check where it goes to, and that there is space left",
            self.0
        )
    }
}

impl std::error::Error for Unsaid {}

/// Writes one line; see the macro [`say`](crate::say!).
pub fn line(text: Arguments<'_>) -> Result<(), Unsaid> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(Unsaid)
}

/// Like `println!`, but returns a result instead of panicking.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => { $crate::say::line(format_args!($($words)*)) };
}
