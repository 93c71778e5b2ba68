//! What Fovea knows of SLURM, and nothing of training: the batch script that is submitted, the environment
//! of a job, how many ranks start on which nodes, what happens when a job has ended, and what to ask the
//! scheduler's commands.
//!
//! Pure but for the shells around the scheduler's commands and the files of a run.

pub mod client;
pub mod env;
pub mod history;
pub mod hostlist;
pub mod next;
pub mod plan;
pub mod script;
pub mod site;
pub mod submit;
pub mod time;
