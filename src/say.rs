//! Standard output. `println!` panics when nobody reads it or its disk is full; here that is an
//! error like any other.

use std::fmt::Arguments;
use std::io::{self, Write};

/// A line for standard output that could not be written.
#[derive(Debug)]
pub struct Unsaid(io::Error);

impl Unsaid {
    /// Whether the reader has had enough (`fovea status RUN | head -1`): no failure.
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

/// Like `println!`, but gives a result.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => { $crate::say::line(format_args!($($words)*)) };
}
