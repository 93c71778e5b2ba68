//! `fovea trainer`

use fovea_coordinator::client::Endpoint;
use fovea_trainer::run_dir::RunDir;
use fovea_trainer::train::{Outcome, TrainerOptions, join};

use super::{drain_flag, end_with_parent};
use crate::cli::TrainerArgs;
use crate::exit::Ending;

pub fn run(args: TrainerArgs) -> anyhow::Result<Ending> {
    if let Some(parent) = args.with_parent {
        end_with_parent(parent)?;
    }
    let options = TrainerOptions {
        endpoint: Endpoint::RunDir(args.run.clone()),
        run: RunDir::new(args.run),
        preferred_rank: args.rank,
        drain_wanted: drain_flag()?,
    };
    match join(options)?.run()? {
        Outcome::Finished => Ok(Ending::Finished),
        Outcome::Drained => Ok(Ending::Resume),
    }
}
