//! The client of people and launchers: status, and the orders that end a run.

use std::io::BufReader;
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use super::connect::{self, Endpoint};
use crate::codec;
use crate::error::{Error, Result};
use crate::protocol::{Reply, Request, Role};
use crate::status::Status;

/// A connection that asks and gets an answer. Each call blocks for 5 s at most.
#[derive(Debug)]
pub struct Observer {
    peer: String,
    stream: BufReader<TcpStream>,
}

impl Observer {
    /// Connects as one who may only look.
    pub fn connect(endpoint: &Endpoint, deadline: Instant) -> Result<Self> {
        Self::connect_as(&Role::Observer, endpoint, deadline)
    }

    /// Connects as one who may also drain, stop and fail the run.
    pub fn connect_launcher(endpoint: &Endpoint, deadline: Instant) -> Result<Self> {
        Self::connect_as(&Role::Launcher, endpoint, deadline)
    }

    fn connect_as(role: &Role, endpoint: &Endpoint, deadline: Instant) -> Result<Self> {
        let opened = connect::open(endpoint, role, deadline)?;
        Ok(Self {
            peer: opened.peer,
            stream: opened.reader,
        })
    }

    /// Asks for the status and waits for it.
    pub fn status(&mut self) -> Result<Status> {
        match self.ask(&Request::GetStatus)? {
            Reply::StatusReport(status) => Ok(*status),
            other => Err(self.unexpected(&other, "the status")),
        }
    }

    /// Launcher: the next committed step is the last one, the same for all ranks. Returns what the
    /// coordinator will do.
    pub fn drain(&mut self, reason: &str) -> Result<String> {
        let reason = reason.to_owned();
        self.order(&Request::Drain { reason })
    }

    /// Launcher: stops the run at once; it can be resumed from its newest checkpoint.
    pub fn shutdown(&mut self, reason: &str) -> Result<String> {
        let reason = reason.to_owned();
        self.order(&Request::Shutdown { reason })
    }

    /// Launcher: fails the run, as when a trainer process ended before it had joined.
    pub fn fail(&mut self, reason: &str) -> Result<String> {
        let reason = reason.to_owned();
        self.order(&Request::Fail { reason })
    }

    fn order(&mut self, request: &Request) -> Result<String> {
        match self.ask(request)? {
            Reply::Noted { detail } => Ok(detail),
            other => Err(self.unexpected(&other, "an acknowledgement")),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Reply> {
        let lost = |detail: String| Error::Lost {
            peer: self.peer.clone(),
            detail,
        };
        codec::write_frame(self.stream.get_mut(), request).map_err(|e| lost(e.to_string()))?;
        let body = codec::read_body(&mut self.stream, codec::MAX_FRAME)
            .map_err(|e| lost(e.to_string()))?
            .ok_or_else(|| lost("the coordinator closed it".to_owned()))?;
        match codec::decode_reply(&body)? {
            Reply::Drop { reason } => Err(Error::Dropped { reason }),
            reply => Ok(reply),
        }
    }

    fn unexpected(&self, reply: &Reply, expected: &'static str) -> Error {
        Error::Unexpected {
            peer: self.peer.clone(),
            got: format!("{reply:?}"),
            expected,
        }
    }
}

/// The status of a run, live when its coordinator answers, else from `status.json`. The flag says
/// whether it is live.
pub fn status_of(run_dir: &Path) -> Result<(Status, bool)> {
    let endpoint = Endpoint::RunDir(run_dir.to_path_buf());
    let live = Observer::connect(&endpoint, Instant::now()).and_then(|mut seen| seen.status());
    match live {
        Ok(status) => Ok((status, true)),
        Err(error) => {
            tracing::debug!("no live coordinator for {}: {error}", run_dir.display());
            Ok((Status::load(run_dir)?, false))
        }
    }
}
