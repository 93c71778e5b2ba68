//! The means to cause faults: signals to threads, a proxy in front of the coordinator, an adjustable clock, a small
//! disk.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

/// Stops one thread of another process until it is dropped; the other threads run on.
pub struct HungThread {
    release: std::sync::mpsc::Sender<()>,
    tracer: Option<JoinHandle<()>>,
}

impl HungThread {
    /// Hangs the main thread of `pid`. `None` where tracing is not allowed.
    pub fn main_of(pid: u32) -> Option<Self> {
        let (release, released) = std::sync::mpsc::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        // A tracee belongs to the thread that attached to it.
        let tracer = std::thread::spawn(move || {
            let call = |request, data: libc::c_long| {
                // SAFETY: these requests take no pointer to memory of this process.
                unsafe { libc::ptrace(request, pid as libc::pid_t, 0 as libc::c_long, data) }
            };
            let attached = call(libc::PTRACE_SEIZE, 0) == 0 && call(libc::PTRACE_INTERRUPT, 0) == 0;
            let _ = ready.send(attached);
            if attached {
                let _ = released.recv();
                call(libc::PTRACE_DETACH, 0);
            }
        });
        is_ready.recv().ok().filter(|attached| *attached)?;
        Some(Self {
            release,
            tracer: Some(tracer),
        })
    }
}

impl Drop for HungThread {
    fn drop(&mut self) {
        let _ = self.release.send(());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

/// A proxy between the processes of a run and their coordinator: it puts its own address into the run's address file.
pub struct Proxy {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    upstream: Mutex<Option<String>>,
    connections: Mutex<Vec<TcpStream>>,
    hold: AtomicBool,
    stop: AtomicBool,
}

impl Proxy {
    /// Starts a proxy for the run in `run`, before its coordinator starts.
    pub fn before(run: &Path) -> Self {
        let state = Arc::new(State::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let accepting = Arc::clone(&state);
        let watching = Arc::clone(&state);
        let file = run.join(fovea_coordinator::rundir::INFO_FILE);
        Self {
            threads: vec![
                std::thread::spawn(move || accepting.accept(&listener)),
                std::thread::spawn(move || watching.divert(&file, &own)),
            ],
            state,
        }
    }

    /// Shuts down all connections through the proxy.
    pub fn drop_all(&self) {
        for stream in self.state.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Holds all traffic for this long.
    pub fn hold(&self, time: Duration) {
        self.state.hold.store(true, Ordering::Relaxed);
        std::thread::sleep(time);
        self.state.hold.store(false, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        self.drop_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl State {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((client, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            let upstream = self.upstream.lock().unwrap().clone();
            let Some(server) = upstream.and_then(|addr| TcpStream::connect(addr).ok()) else {
                continue;
            };
            for stream in [&client, &server] {
                stream.set_nonblocking(false).unwrap();
                stream.set_nodelay(true).unwrap();
                let copy = stream.try_clone().unwrap();
                self.connections.lock().unwrap().push(copy);
            }
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let state = Arc::clone(self);
                std::thread::spawn(move || state.pass(from, to));
            }
        }
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buf = [0; 64 << 10];
        while let Ok(n) = from.read(&mut buf) {
            while self.hold.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
            }
            if n == 0 || to.write_all(&buf[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Replaces every new coordinator's address with this proxy's.
    fn divert(&self, file: &Path, own: &str) {
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
            let info = fs::read(file).ok();
            let info = info.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            let Some(mut info) = info.filter(|info| info["addr"] != own) else {
                continue;
            };
            *self.upstream.lock().unwrap() = info["addr"].as_str().map(str::to_owned);
            info["addr"] = own.into();
            let aside = file.with_extension("proxy");
            fs::write(&aside, info.to_string()).unwrap();
            let _ = fs::rename(&aside, file);
        }
    }
}

/// A preloaded library that shifts `CLOCK_REALTIME` of its process by the offset in a file.
pub struct MovableClock {
    pub library: PathBuf,
    pub offset: PathBuf,
}

const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    const char *path = getenv("CHAOS_CLOCK");
    if (id == CLOCK_REALTIME && path) {
        FILE *file = fopen(path, "r");
        long seconds = 0;
        if (file) { if (fscanf(file, "%ld", &seconds) == 1) at->tv_sec += seconds; fclose(file); }
    }
    return result;
}
"#;

impl MovableClock {
    /// Compiles the library; `None` without a C compiler.
    pub fn build(directory: &Path) -> Option<Self> {
        let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
        fs::write(&source, CLOCK).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .args(["-ldl"])
            .status();
        built.is_ok_and(|status| status.success()).then(|| Self {
            library,
            offset: directory.join("offset"),
        })
    }

    pub fn jump(&self, seconds: i64) {
        fs::write(&self.offset, seconds.to_string()).unwrap();
    }
}

/// A file system in memory that can be filled.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts it at an empty directory; `None` where that is not allowed.
    pub fn mount(at: &Path) -> Option<Self> {
        let words = ["-t", "tmpfs", "-o", "size=3g", "tmpfs"];
        let done = Command::new("mount").args(words).arg(at).output();
        done.is_ok_and(|done| done.status.success())
            .then(|| Self(at.to_owned()))
    }

    /// Fills the disk for this long.
    pub fn fill(&self, time: Duration) {
        let ballast = self.0.join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        let piece = vec![0u8; 1 << 20];
        while file.write_all(&piece).is_ok() {}
        drop(file);
        std::thread::sleep(time);
        fs::remove_file(&ballast).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
