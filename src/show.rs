//! The live view of a run: a bar and a line per rank on a terminal, plain lines in a log.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use fovea_coordinator::status::Status;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::say;

/// Time between two lines where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(15);

/// Shows the status of a run while it changes.
pub struct StatusView {
    terminal: Option<Terminal>,
    printed: Option<Instant>,
    epoch_shown: Option<u32>,
    incident_shown: Option<String>,
}

struct Terminal {
    all: MultiProgress,
    bar: ProgressBar,
    ranks: Vec<ProgressBar>,
}

impl StatusView {
    /// Shows a bar when standard error is a terminal, plain lines otherwise.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal().then(|| {
            let all = MultiProgress::new();
            let bar = all.add(ProgressBar::new(1));
            let style = ProgressStyle::with_template("{prefix} [{wide_bar:.cyan/blue}] {msg}");
            bar.set_style(
                style
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("=> "),
            );
            Terminal {
                all,
                bar,
                ranks: Vec::new(),
            }
        });
        Self {
            terminal,
            printed: None,
            epoch_shown: None,
            incident_shown: None,
        }
    }

    /// Shows a new status; without a terminal, at most one line per [`PLAIN_EVERY`].
    pub fn update(&mut self, status: &Status) {
        self.epoch_line(status);
        self.incident_line(status);
        match &mut self.terminal {
            Some(terminal) => terminal.update(status),
            None if self.printed.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) => {
                self.printed = Some(Instant::now());
                // The run continues even when nobody reads this.
                let _ = say!("{}  {}", place(status), figures(status));
            }
            None => {}
        }
    }

    /// Prints the last epoch's line and removes the bar from the terminal.
    pub fn finish(&mut self, status: &Status) {
        self.epoch_line(status);
        if let Some(terminal) = &self.terminal {
            let _ = terminal.all.clear();
        }
    }

    /// Prints one lasting line per evaluated epoch.
    fn epoch_line(&mut self, status: &Status) {
        let Some(last) = status
            .last_epoch
            .as_ref()
            .filter(|last| self.epoch_shown != Some(last.epoch))
        else {
            return;
        };
        self.epoch_shown = Some(last.epoch);
        let figure = |name: &str| {
            last.metrics
                .get(name)
                .map_or_else(|| "-".to_owned(), |x| format!("{x:.3}"))
        };
        // Names in reverse alphabetical order put patches before images.
        let targets = last.metrics.keys().rev();
        let targets = targets.filter_map(|name| name.strip_suffix("_f1_micro"));
        let told = targets.enumerate().map(|(place, target)| {
            let scores = format!(
                "{target} micro-F1 {} mean AUROC {}",
                figure(&format!("{target}_f1_micro")),
                figure(&format!("{target}_mean_auroc"))
            );
            match place {
                0 => format!("{scores} loss {}", figure(&format!("{target}_loss"))),
                _ => scores,
            }
        });
        self.line(format!(
            "epoch {}/{}  validation: {}",
            last.epoch,
            status.epochs,
            told.collect::<Vec<_>>().join(" | ")
        ));
        if let Some(why) = &last.undefined {
            self.line(format!(
                "UNDEFINED  {why}; epoch {} cannot be the best one",
                last.epoch
            ));
        }
    }

    /// Prints one lasting line per lost rank.
    fn incident_line(&mut self, status: &Status) {
        if status.last_incident != self.incident_shown {
            self.incident_shown.clone_from(&status.last_incident);
            if let Some(incident) = &status.last_incident {
                self.line(format!("lost       {incident}"));
            }
        }
    }

    fn line(&self, line: String) {
        match &self.terminal {
            Some(terminal) => drop(terminal.all.println(line)),
            None => drop(say!("{line}")),
        }
    }
}

impl Terminal {
    fn update(&mut self, status: &Status) {
        self.bar.set_length(status.samples_total.max(1));
        self.bar.set_position(status.cursor);
        self.bar.set_prefix(place(status));
        self.bar.set_message(figures(status));
        while self.ranks.len() < status.ranks.len() {
            let line = self.all.add(ProgressBar::new_spinner());
            line.set_style(
                ProgressStyle::with_template("  {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            self.ranks.push(line);
        }
        for (line, rank) in self.ranks.iter().zip(&status.ranks) {
            line.set_message(rank_line(rank));
        }
    }
}

/// One rank's line: seat, process, state, throughput.
pub fn rank_line(rank: &fovea_coordinator::status::RankStatus) -> String {
    let seat = rank.rank.map_or_else(|| "-".to_owned(), |r| r.to_string());
    format!(
        "rank {seat:<3} {}:{:<8} {:<10} step {:<7} {:6.1} patches/s",
        rank.host,
        rank.pid,
        format!("{:?}", rank.state).to_lowercase(),
        rank.step,
        rank.samples_per_s
    )
}

fn place(status: &Status) -> String {
    let epoch = (status.epoch + 1).min(status.epochs);
    format!(
        "{:<10} epoch {epoch}/{} step {}",
        format!("{:?}", status.state).to_lowercase(),
        status.epochs,
        status.step
    )
}

fn figures(status: &Status) -> String {
    let loss = status
        .loss
        .map_or_else(|| "-".to_owned(), |l| format!("{l:.4}"));
    let eta = status.eta_s.map_or_else(|| "-".to_owned(), duration);
    format!(
        "{:.1} patches/s  loss {loss}  ETA {eta}",
        status.samples_per_s
    )
}

/// `1 image`, `2 images`.
pub fn counted(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// A duration in its two largest units: `1h02m`, `3m20s`, `15s`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// `12.3 GB`, `480.0 MB`.
pub fn gigabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
