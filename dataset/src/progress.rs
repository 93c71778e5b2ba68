//! Progress reports of a long run.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Told about the units (images) done by a long run; called from several threads.
pub trait ProgressListener: Sync {
    /// The run begins and has `total` units to do.
    fn start(&self, total: u64);
    /// `n` more units are done.
    fn advance(&self, n: u64);
    /// The run is over, well or badly.
    fn finish(&self);
}

/// The listener of callers that show no progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl ProgressListener for Silent {
    fn start(&self, _total: u64) {}
    fn advance(&self, _n: u64) {}
    fn finish(&self) {}
}

/// A bar on standard error with count, rate and time left; draws nothing when standard error is no terminal.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar captioned `what` ("prepare", "synth").
    pub fn new(what: &str) -> Self {
        let bar = ProgressBar::new(0);
        let template = "{msg:<10} [{bar:32}] {pos}/{len} images  {per_sec}  {eta} left";
        // A template that indicatif cannot read costs the looks, not the run.
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_message(what.to_owned());
        Self { bar }
    }
}

impl ProgressListener for Bar {
    fn start(&self, total: u64) {
        self.bar.reset();
        self.bar.set_length(total);
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    fn advance(&self, n: u64) {
        self.bar.inc(n);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_counts_what_it_is_told() {
        let bar = Bar::new("prepare");
        bar.start(10);
        bar.advance(3);
        bar.advance(4);
        assert_eq!(bar.bar.length(), Some(10));
        assert_eq!(bar.bar.position(), 7);
        bar.finish();
        assert!(bar.bar.is_finished());
    }
}
