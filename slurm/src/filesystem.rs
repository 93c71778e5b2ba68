//! The kind of a path's file system, and its free space.

use std::io;
use std::path::Path;

use serde::Serialize;

/// Which nodes see the files of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Only this node; the files are on a disk.
    Node,
    /// Only this node; the files are in memory and count against a job's memory.
    Memory,
    /// Every node that mounts it.
    Network,
    /// Unknown; treat it like [`Reach::Network`].
    Unknown,
}

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FilesystemKind {
    /// Its name as `mount` shows it, or words for an unknown one.
    pub name: &'static str,
    /// Which nodes see its files.
    pub reach: Reach,
}

/// The kind by the magic number of statfs(2). Sources: linux/magic.h, and the code of file systems outside the kernel.
pub fn kind(magic: u64) -> FilesystemKind {
    let (name, reach) = match magic {
        0xEF53 => ("ext4", Reach::Node),
        0x5846_5342 => ("xfs", Reach::Node),
        0x9123_683E => ("btrfs", Reach::Node),
        0x2FC1_2FC1 => ("zfs", Reach::Node),
        0xF2F5_2010 => ("f2fs", Reach::Node),
        0xCA45_1A4E => ("bcachefs", Reach::Node),
        0x794C_7630 => ("overlay", Reach::Node),
        0x0102_1994 => ("tmpfs", Reach::Memory),
        0x8584_58F6 => ("ramfs", Reach::Memory),
        0x6969 => ("nfs", Reach::Network),
        0x0BD0_0BD0 => ("lustre", Reach::Network),
        0x4750_4653 => ("gpfs", Reach::Network),
        0x1983_0326 => ("beegfs", Reach::Network),
        0x00C3_6400 => ("ceph", Reach::Network),
        0x5346_414F | 0x6B41_4653 => ("afs", Reach::Network),
        0xFF53_4D42 | 0xFE53_4D42 | 0x517B => ("cifs", Reach::Network),
        0x0102_1997 => ("9p", Reach::Network),
        0xAAD7_AAEA => ("panfs", Reach::Network),
        0x2003_0528 => ("orangefs", Reach::Network),
        0x0116_1970 => ("gfs2", Reach::Network),
        0x7461_636F => ("ocfs2", Reach::Network),
        0x6573_5546 => ("fuse", Reach::Unknown),
        _ => ("an unknown file system", Reach::Unknown),
    };
    FilesystemKind { name, reach }
}

/// A mounted file system at the time of the look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mounted {
    /// Its name and reach, flattened into this record in JSON.
    #[serde(flatten)]
    pub kind: FilesystemKind,
    /// Bytes that this user may still write.
    pub free_bytes: u64,
}

/// Asks the system about the file system of `path`, which must exist.
pub fn look(path: &Path) -> io::Result<Mounted> {
    let magic = rustix::fs::statfs(path)?.f_type as u64 & 0xFFFF_FFFF;
    let stat = rustix::fs::statvfs(path)?;
    Ok(Mounted {
        kind: kind(magic),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_nodes_see_is_told_from_what_they_do_not() {
        assert_eq!(kind(0xEF53).reach, Reach::Node);
        assert_eq!(kind(0x6969).reach, Reach::Network);
        assert_eq!(kind(0x0BD0_0BD0).name, "lustre");
        assert_eq!(kind(0x1234_5678).reach, Reach::Unknown);
    }

    #[test]
    fn the_system_answers() {
        let shm = look(Path::new("/dev/shm")).unwrap();
        assert_eq!(shm.kind.reach, Reach::Memory);
        assert!(shm.free_bytes > 0);
        assert!(look(Path::new("/no/such/place")).is_err());
    }
}
