//! The coordinator as the place where the ranks of a generation exchange messages to find each other.

use std::time::Instant;

use fovea_collectives as collectives;
use fovea_collectives::Board;
use fovea_coordinator::client::Client;
use fovea_coordinator::rundir::directory_id;
use fovea_coordinator::token::Token;
use fovea_run::run_dir::RunDir;

/// The message board of one generation, at the coordinator.
pub(super) struct CoordinatorBoard<'a> {
    pub run: &'a RunDir,
    pub client: &'a mut Client,
    pub generation: u64,
}

impl Board for CoordinatorBoard<'_> {
    fn run_id(&mut self) -> collectives::Result<String> {
        // A copy of the run directory has the same token, so the id contains the directory's own id too.
        let path = self.run.path();
        Ok(format!(
            "{}-{}",
            Token::load(path)?.to_hex(),
            directory_id(path)
        ))
    }

    fn publish(&mut self, message: Vec<u8>) -> collectives::Result<()> {
        Ok(self.client.publish(self.generation, message)?)
    }

    fn published(&mut self, deadline: Instant) -> collectives::Result<Vec<u8>> {
        Ok(self.client.published(self.generation, deadline)?)
    }
}
