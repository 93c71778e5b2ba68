//! The configuration files of the daemons of a test cluster.

use std::path::Path;

/// The nodes, all alike.
pub const NODES: [&str; 2] = ["n1", "n2"];
/// CPUs that each node claims to have, whatever the machine has.
pub const CPUS: u32 = 4;

/// The settings that tests vary: `Options { grace_time: 5, ..Options::default() }`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds between TERM and KILL.
    pub kill_wait: u32,
    /// Seconds of silence after which a node counts as down (noticed up to three times as late).
    pub slurmd_timeout: u32,
    /// Seconds between the signal to a preempted job of partition `low` and its end; 0 ends it at once.
    pub grace_time: u32,
    /// The exit code with which a batch script has its job requeued; `None` for no such code.
    pub requeue_exit: Option<u8>,
    /// Whether jobs may be requeued unless their options forbid it.
    pub job_requeue: bool,
    /// More lines for `slurm.conf`.
    pub more: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kill_wait: 2,
            slurmd_timeout: 300,
            grace_time: 0,
            requeue_exit: None,
            job_requeue: true,
            more: Vec::new(),
        }
    }
}

/// Host names, addresses and ports of the daemons.
pub struct Sites {
    /// `hostname` where slurmctld runs, and its address.
    pub head: (String, String),
    pub head_port: u16,
    /// `hostname` where each slurmd runs, its address and port.
    pub nodes: [(String, String, u16); 2],
    pub user: String,
}

/// `slurm.conf`. Timings are the shortest that Slurm accepts, above all `cred_expire`: a requeued job waits for it, its
/// default is 2 minutes, and every requeue in a test would take as long. Each node has its own `TmpFS`, because PMIx
/// servers of two nodes on one directory disturb each other.
pub fn slurm_conf(state: &Path, sites: &Sites, options: &Options) -> String {
    let state = state.display();
    let Sites {
        head: (host, address),
        head_port,
        nodes,
        user,
    } = sites;
    let Options {
        kill_wait,
        slurmd_timeout,
        grace_time,
        ..
    } = options;
    let job_requeue = u8::from(options.job_requeue);
    let mut text = format!(
        "\
ClusterName=test
SlurmctldHost={host}({address})
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={state}/munge.sock,cred_expire=5
SlurmctldPort={head_port}
SlurmctldPidFile={state}/slurmctld.pid
SlurmctldLogFile={state}/slurmctld.log
StateSaveLocation={state}/state
SlurmdPidFile={state}/slurmd.%n.pid
SlurmdLogFile={state}/slurmd.%n.log
SlurmdSpoolDir={state}/spool.%n
TmpFS={state}/tmp.%n
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue={job_requeue}
KillOnBadExit=1
KillWait={kill_wait}
MessageTimeout=5
MinJobAge=3600
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
GresTypes=gpu
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_time}
PartitionName=high Nodes=ALL Default=NO PriorityTier=10 PreemptMode=OFF
"
    );
    for (name, (host, address, port)) in NODES.iter().zip(nodes) {
        text += &format!(
            "NodeName={name} NodeHostName={host} NodeAddr={address} Port={port} CPUs={CPUS} RealMemory=1000 Gres=gpu:2\n"
        );
    }
    if let Some(code) = options.requeue_exit {
        text += &format!("RequeueExit={code}\n");
    }
    for line in &options.more {
        text += &format!("{line}\n");
    }
    text
}

/// `gres.conf`: two device files that exist everywhere stand for the GPUs of a node. Slurm accepts neither a count
/// alone nor the same file twice.
pub const GRES_CONF: &str = "NodeName=n[1-2] Name=gpu File=/dev/tty[0-1]\n";

/// `cgroup.conf`: without it slurmd exits where there are no control groups.
pub const CGROUP_CONF: &str = "CgroupPlugin=cgroup/v1\n";
