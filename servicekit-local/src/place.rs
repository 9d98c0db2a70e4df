//! Where the file is: made with the right permissions, on a file system that can be trusted with locks, and still the same.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use servicekit_core::{Error, Kind, Result};

use crate::error::from_io;

/// A file that is there, and which one it was.
#[derive(Debug)]
pub(crate) struct Place {
    /// Absolute and without links, so that all processes of this host agree on the names of the files beside it.
    pub(crate) path: PathBuf,
    identity: (u64, u64),
}

impl Place {
    /// Finds the file, or makes it, and the folders above it, for its owner alone.
    pub(crate) fn prepare(path: &Path) -> Result<Self> {
        let failed = |doing: &'static str| move |error| from_io(error, doing, path);
        let absolute = std::path::absolute(path).map_err(failed("find"))?;
        let Some(folder) = absolute.parent() else {
            return Err(Error::new(Kind::Invalid, format!("{} is no file", path.display())));
        };
        refuse_network(&absolute)?;
        make_folders(folder)?;
        make_file(&absolute).map_err(failed("make"))?;
        let path = fs::canonicalize(&absolute).map_err(failed("find"))?;
        let file = fs::metadata(&path).map_err(failed("look at"))?;
        if !file.is_file() {
            let what = if file.is_dir() {
                "a folder; name a file in it"
            } else {
                "no ordinary file; name another"
            };
            let message = format!("{} is {what}", path.display());
            return Err(Error::new(Kind::Invalid, message));
        }
        Ok(Self { path, identity: (file.dev(), file.ino()) })
    }

    /// Refuses to go on when the file was removed or replaced: what is written to an unlinked file is lost.
    pub(crate) fn check(&self) -> Result<()> {
        let (kind, found) = match fs::metadata(&self.path) {
            Ok(file) if (file.dev(), file.ino()) == self.identity => return Ok(()),
            // Waiting does not bring the old one back.
            Ok(_) => (Kind::Invalid, "replaced by another"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Kind::Unavailable, "removed"),
            Err(error) => return Err(from_io(error, "look at", &self.path)),
        };
        let message = format!(
            "{} was {found} while it was open; put it back, or start this process again",
            self.path.display()
        );
        Err(Error::new(kind, message))
    }
}

/// The file of this name beside the store.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn make_folders(folder: &Path) -> Result<()> {
    let missing: Vec<_> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        let made = match fs::create_dir(folder) {
            // Not subject to the umask, which might leave it unusable.
            Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o700)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        };
        made.map_err(|error| from_io(error, "make", folder))?;
    }
    Ok(())
}

fn make_file(path: &Path) -> io::Result<()> {
    // One that is there is never opened here: closing it would end the locks that SQLite holds on it in this process.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file.set_permissions(Permissions::from_mode(0o600)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) if path.exists() => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the mount table says of the file system that `path` is on, or will be on; `unknown` where it says nothing.
pub(crate) fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounted_at(&mounts, path).unwrap_or("unknown").to_owned()
}

fn refuse_network(path: &Path) -> Result<()> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let there = fs::canonicalize(there).map_err(|error| from_io(error, "find", there))?;
    let stat = rustix::fs::statfs(&there);
    let stat = stat.map_err(|error| from_io(error.into(), "look at the file system of", &there))?;
    let magic = u32::try_from(i128::from(stat.f_type) & 0xffff_ffff).unwrap_or(0);
    let found = match NETWORK_MAGIC.iter().find(|(number, _)| *number == magic) {
        Some((_, name)) => Some((*name).to_owned()),
        None if magic == FUSE_MAGIC => {
            Some(file_system(&there)).filter(|name| is_remote_fuse(name))
        }
        None => None,
    };
    match found {
        None => Ok(()),
        Some(name) => {
            let message = format!(
                "{} is on {name}, a file system that several machines may share: locks and clocks of one host say nothing \
                 there. Name a file on a local disk, or use a shared store (etcd, DynamoDB, CouchDB)",
                path.display()
            );
            Err(Error::new(Kind::Unsupported, message))
        }
    }
}

/// The type of the file system that was mounted last over the nearest folder above `path`.
fn mounted_at<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        let depth = Path::new(&point).components().count();
        path.starts_with(&point).then_some((depth, source.split(' ').next()?))
    });
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, name)| name)
}

/// Whether a file system in user space is known to be on a network, or shared by virtual machines.
fn is_remote_fuse(name: &str) -> bool {
    let name = name.strip_prefix("fuse.").unwrap_or(name);
    REMOTE_FUSE.iter().any(|remote| name.starts_with(remote))
}

const FUSE_MAGIC: u32 = 0x6573_5546;

/// From `linux/magic.h` and the file systems' own sources.
#[rustfmt::skip]
const NETWORK_MAGIC: [(u32, &str); 23] = [
    (0x0000_6969, "nfs"),     (0x0000_517b, "smb"),       (0xff53_4d42, "cifs"),   (0xfe53_4d42, "smb2"),
    (0x0102_1997, "9p"),      (0x00c3_6400, "ceph"),      (0x0bd0_0bd0, "lustre"), (0x5346_414f, "afs"),
    (0x6b41_4653, "afs"),     (0x7375_7245, "coda"),      (0x0000_564c, "ncp"),    (0x0116_1970, "gfs2"),
    (0x7461_636f, "ocfs2"),   (0x4750_4653, "gpfs"),      (0x4750_4d53, "gpfs"),   (0x1983_0326, "beegfs"),
    (0x2003_0528, "orangefs"),(0xaad7_aaea, "panfs"),     (0x786f_4256, "vboxsf"), (0xbacb_acbc, "vmhgfs"),
    (0x7c7c_6673, "prl_fs"),  (0x6769_6c31, "glusterfs"), (0x5850_5342, "pvfs2"),
];

/// How their names begin.
const REMOTE_FUSE: [&str; 19] = [
    "sshfs",
    "gluster",
    "ceph",
    "s3",
    "gcsfuse",
    "goofys",
    "rclone",
    "davfs",
    "juicefs",
    "mfs",
    "lizardfs",
    "virtiofs",
    "curlftpfs",
    "vmhgfs",
    "smb",
    "hdfs",
    "seaweed",
    "blobfuse",
    "beegfs",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_file_are_for_the_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/s.db");
        let place = Place::prepare(&path).unwrap();
        for (path, mode) in [("a", 0o700), ("a/b", 0o700), ("a/b/s.db", 0o600)] {
            let found = fs::metadata(folder.path().join(path)).unwrap().mode() & 0o7777;
            assert_eq!(found, mode, "{path}");
        }
        place.check().unwrap();
    }

    #[test]
    fn a_removed_or_replaced_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.db");
        let place = Place::prepare(&path).unwrap();
        let aside = folder.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        assert!(place.check().unwrap_err().message().contains("removed"));
        fs::write(&path, "").unwrap();
        assert!(place.check().unwrap_err().message().contains("replaced"));
        fs::rename(&aside, &path).unwrap();
        place.check().unwrap();
    }

    #[test]
    fn what_is_no_file_in_a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = Place::prepare(folder.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        fs::write(folder.path().join("file"), "").unwrap();
        let error = Place::prepare(&folder.path().join("file/s.db")).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert_eq!(Place::prepare(Path::new("/")).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(Place::prepare(Path::new("/dev/null")).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn the_mount_table_tells_the_file_system() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      31 22 0:40 / /mnt/far\\040away rw - fuse.sshfs me@there:/ rw\n\
                      32 22 0:41 / /mnt rw - tmpfs none rw\n\
                      33 32 0:42 / /mnt rw - xfs /dev/vdb rw\n";
        for (path, name) in [
            ("/etc", "ext4"),
            ("/mnt/far away/s.db", "fuse.sshfs"),
            ("/mnt/x", "xfs"),
            ("/mntx", "ext4"),
        ] {
            assert_eq!(mounted_at(mounts, Path::new(path)), Some(name), "{path}");
        }
        assert_eq!(mounted_at("nonsense\n - \n", Path::new("/")), None);
        assert_ne!(file_system(Path::new("/proc/self")), "unknown");
    }

    #[test]
    fn remote_file_systems_in_user_space_are_told_from_local_ones() {
        for name in [
            "fuse.sshfs",
            "fuse.glusterfs",
            "fuse.ceph-fuse",
            "virtiofs",
            "fuse.rclone",
            "fuse.mfs",
        ] {
            assert!(is_remote_fuse(name), "{name}");
        }
        for name in ["fuse.fuse-overlayfs", "fuseblk", "fuse.gocryptfs", "fuse.unionfs", "unknown"]
        {
            assert!(!is_remote_fuse(name), "{name}");
        }
    }
}
