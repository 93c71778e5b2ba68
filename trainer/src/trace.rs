//! The trace of the first steps: what the threads of a rank did when, for `ui.perfetto.dev` or `chrome://tracing`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::error::Result;

/// A named stretch of time on one thread.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    /// Name of the work: `backward`, `all-reduce bucket 2`, ...
    pub name: String,
    /// Name of the thread that did the work.
    pub thread: String,
    /// Start, in microseconds since the trace began.
    pub start_us: f64,
    /// Duration of the work, in microseconds.
    pub duration_us: f64,
}

/// Records spans until it is switched off.
#[derive(Debug)]
pub(crate) struct Trace {
    on: AtomicBool,
    begin: Instant,
    spans: Mutex<Vec<Span>>,
}

impl Trace {
    /// A trace that records when `on`.
    pub fn new(on: bool) -> Self {
        Self {
            on: AtomicBool::new(on),
            begin: Instant::now(),
            spans: Mutex::default(),
        }
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Runs `work`, and records how long it took on this thread.
    pub fn time<T>(&self, name: impl FnOnce() -> String, work: impl FnOnce() -> T) -> T {
        if !self.is_on() {
            return work();
        }
        let start = Instant::now();
        let done = work();
        let duration = start.elapsed();
        let thread = std::thread::current();
        self.lock().push(Span {
            name: name(),
            thread: thread.name().unwrap_or("main").to_owned(),
            start_us: start.duration_since(self.begin).as_secs_f64() * 1e6,
            duration_us: duration.as_secs_f64() * 1e6,
        });
        done
    }

    /// The spans so far.
    #[cfg(test)]
    pub fn spans(&self) -> Vec<Span> {
        self.lock().clone()
    }

    /// Writes all spans as trace events, and stops recording.
    pub fn end(&self, path: &Path, rank: usize) -> Result<()> {
        self.on.store(false, Ordering::Relaxed);
        let spans = std::mem::take(&mut *self.lock());
        let text = events(&spans, rank).to_string();
        let write = || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(path, text)
        };
        Ok(write()
            .map_err(|e| fovea_run::Error::file(path, &e, "check free space and permissions"))?)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Span>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The trace event format: complete events (`ph: X`), a row per thread.
fn events(spans: &[Span], rank: usize) -> Value {
    let mut threads: Vec<&str> = spans.iter().map(|span| span.thread.as_str()).collect();
    threads.sort_unstable();
    threads.dedup();
    let named = threads.iter().enumerate().map(|(tid, name)| {
        json!({ "ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": { "name": name } })
    });
    let process = json!({ "ph": "M", "name": "process_name", "pid": rank, "args": { "name": format!("rank {rank}") } });
    let timed = spans.iter().map(|span| {
        json!({
            "ph": "X",
            "name": span.name,
            "pid": rank,
            "tid": threads.binary_search(&span.thread.as_str()).unwrap_or_default(),
            "ts": span.start_us,
            "dur": span.duration_us,
        })
    });
    let all: Vec<Value> = [process].into_iter().chain(named).chain(timed).collect();
    json!({ "displayTimeUnit": "ms", "traceEvents": all })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_by_thread() {
        let trace = Trace::new(true);
        let outer = trace.time(
            || "outer".to_owned(),
            || {
                std::thread::scope(|scope| {
                    let named = std::thread::Builder::new().name("lane-0".to_owned());
                    let inner = || trace.time(|| "inner".to_owned(), || 7);
                    named.spawn_scoped(scope, inner).unwrap().join().unwrap()
                })
            },
        );
        assert_eq!(outer, 7);
        let spans = trace.spans();
        assert_eq!((&*spans[0].name, &*spans[0].thread), ("inner", "lane-0"));
        assert!(spans[1].start_us <= spans[0].start_us);
        assert!(spans[1].duration_us >= spans[0].duration_us);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace/rank-3.json");
        trace.end(&path, 3).unwrap();
        trace.time(|| "late".to_owned(), || ());
        assert!(trace.spans().is_empty());
        let written: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let events = written["traceEvents"].as_array().unwrap();
        let inner = events.iter().find(|e| e["name"] == "inner").unwrap();
        let lane = events.iter().find(|e| e["args"]["name"] == "lane-0");
        assert_eq!((&inner["ph"], &inner["pid"]), (&json!("X"), &json!(3)));
        assert_eq!(inner["tid"], lane.unwrap()["tid"]);
    }
}
