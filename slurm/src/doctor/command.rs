//! Runs commands that may be absent or may never end.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CommandOutcome {
    /// The command does not exist, or this user may not run it.
    Missing,
    /// It was still running at the limit and was killed.
    TooLong,
    /// It ended before the limit.
    Ended {
        /// Whether its exit code is 0.
        good: bool,
        /// Standard output, at most 1 MiB; empty when another process kept the stream open.
        out: String,
        /// Standard error, with the same limits.
        err: String,
    },
}

impl CommandOutcome {
    /// Standard output of a command that ended with exit code 0.
    pub fn good(self) -> Option<String> {
        match self {
            Self::Ended {
                good: true, out, ..
            } => Some(out),
            _ => None,
        }
    }
}

/// Most bytes of each stream that are kept.
const MOST_BYTES: u64 = 1 << 20;
/// Pause between two looks at whether a command has ended.
const TICK: Duration = Duration::from_millis(10);

/// Runs `program` for at most `limit`.
pub(super) fn run(program: &str, arguments: &[&str], limit: Duration) -> CommandOutcome {
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        return CommandOutcome::Missing;
    };
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let deadline = Instant::now() + limit;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(TICK),
            _ => {
                // An error here means that it has ended already.
                let _ = child.kill();
                let _ = child.wait();
                return CommandOutcome::TooLong;
            }
        }
    };
    // A grandchild may keep a stream open: nobody waits for it, and that stream's text is lost.
    let text = |stream: mpsc::Receiver<String>| {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.recv_timeout(left.max(TICK)).unwrap_or_default()
    };
    CommandOutcome::Ended {
        good: status.success(),
        out: text(out),
        err: text(err),
    }
}

fn reader(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // A stream that breaks off keeps what was read so far.
            let _ = (&mut stream).take(MOST_BYTES).read_to_end(&mut bytes);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn commands_end_well_badly_never_or_are_not_there() {
        assert_eq!(
            run("fovea-no-such-command", &[], LONG),
            CommandOutcome::Missing
        );
        assert_eq!(
            run("sleep", &["1000"], Duration::from_millis(30)),
            CommandOutcome::TooLong
        );
        let ended = run("sh", &["-c", "echo out; echo err >&2; exit 3"], LONG);
        let expected = CommandOutcome::Ended {
            good: false,
            out: "out\n".to_owned(),
            err: "err\n".to_owned(),
        };
        assert_eq!(ended, expected);
        assert_eq!(ended.good(), None);
        assert_eq!(run("echo", &["a"], LONG).good().as_deref(), Some("a\n"));
    }

    #[test]
    fn much_output_blocks_nobody() {
        let out = run("head", &["-c", "3000000", "/dev/zero"], LONG)
            .good()
            .unwrap();
        assert_eq!(out.len() as u64, MOST_BYTES);
    }
}
