//! Exit codes of all processes of a run, for launchers, scripts and schedulers.

/// The run is finished; nothing is left to do.
pub const FINISHED: i32 = 0;
/// Failed; trying again as it is may not help.
pub const FAILED: i32 = 1;
/// The command line, the configuration or the input is wrong: trying again never helps.
pub const WRONG_INPUT: i32 = 2;
/// Left early and in order, with a complete checkpoint: start again with `--resume` (a scheduler: requeue).
pub const LEFT: i32 = 85;

/// Whether a process that ended with `code` knew what it was doing, rather than being killed.
pub fn is_in_order(code: i32) -> bool {
    [FINISHED, FAILED, WRONG_INPUT, LEFT].contains(&code)
}
