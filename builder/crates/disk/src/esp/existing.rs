//! File systems that exist: reading them, and putting a file into one, through `fatfs`.

use std::io::{self, Read, Seek, Write};

use fatfs::{Date, DateTime, FileSystem, FsOptions, Time, TimeProvider};

use super::name;
use super::plan::{normal, timestamp};
use crate::error::{Context, Error, Result};

/// A file or directory that [`list`] found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Path from the root, without a leading slash.
    pub path: String,
    /// Length in bytes; nothing for a directory.
    pub len: Option<u64>,
}

/// All files and directories, sorted by path. `device` is the partition alone, see [`crate::image::Region`].
pub fn list<D: Read + Write + Seek>(device: &mut D) -> Result<Vec<Found>> {
    let what = || "reading the FAT file system".to_owned();
    let file_system = open(device, FsOptions::new()).context(what)?;
    let mut found = Vec::new();
    let mut directories = vec![(String::new(), file_system.root_dir(), 0)];
    while let Some((prefix, directory, depth)) = directories.pop() {
        for entry in directory.iter() {
            let entry = entry.context(what)?;
            let name = entry.file_name();
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{prefix}{name}");
            if entry.is_dir() {
                // A damaged file system may hold a directory within itself.
                if depth == MAX_DEPTH {
                    return Err(Error::FatPath(path));
                }
                directories.push((format!("{path}/"), entry.to_dir(), depth + 1));
                found.push(Found { path, len: None });
            } else {
                found.push(Found { path, len: Some(entry.len()) });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The content of a file of at most `limit` bytes, or nothing where there is no such file. Case does not matter.
pub fn read_file<D: Read + Write + Seek>(device: &mut D, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let what = || format!("reading {path} from the FAT file system");
    let file_system = open(device, FsOptions::new()).context(what)?;
    let file = match file_system.root_dir().open_file(&normal(path)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(what),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).context(what)?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { what: path.to_owned(), len: bytes.len() as u64, room: limit });
    }
    Ok(Some(bytes))
}

/// Creates or replaces a file in a directory that exists: `fatfs` 0.3 gives the entries "." and ".." of a directory that
/// it makes long names, which `fsck.fat` takes for damage. So what shall receive files later is one of
/// [`super::Spec::directories`]. `unix_time` is the time that the file is given, as in [`super::Spec`].
pub fn put_file<D: Read + Write + Seek>(device: &mut D, path: &str, bytes: &[u8], unix_time: u64) -> Result<()> {
    let what = || format!("writing {path} to the FAT file system");
    let path = normal(path);
    for component in path.split('/') {
        name::check(component).map_err(|_| Error::FatPath(path.clone()))?;
    }
    // `fatfs` wants its clock for ever: these few bytes are never freed, and a program puts few files.
    let clock: &'static FixedTime = Box::leak(Box::new(FixedTime::new(unix_time)));
    let file_system = open(device, FsOptions::new().time_provider(clock)).context(what)?;
    write_through(&file_system, &path, bytes).context(what)?;
    file_system.unmount().context(what)
}

/// `fatfs` panics on a device that does not stand at its start.
fn open<D: Read + Write + Seek>(device: &mut D, options: FsOptions) -> io::Result<FileSystem<&mut D>> {
    device.rewind()?;
    FileSystem::new(device, options)
}

fn write_through<D: Read + Write + Seek>(file_system: &FileSystem<D>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let root = file_system.root_dir();
    let mut file = root.create_file(path)?;
    file.truncate()?;
    file.write_all(bytes)?;
    file.flush()
}

/// Removes a file. Returns whether it was there.
pub fn remove_file<D: Read + Write + Seek>(device: &mut D, path: &str) -> Result<bool> {
    let what = || format!("removing {path} from the FAT file system");
    let file_system = open(device, FsOptions::new()).context(what)?;
    let removed = match file_system.root_dir().remove(&normal(path)) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).context(what),
    };
    file_system.unmount().context(what)?;
    Ok(removed)
}

/// Deeper than any path of 255 characters can be.
const MAX_DEPTH: usize = 128;

/// A clock that stands.
#[derive(Debug)]
struct FixedTime {
    date_time: DateTime,
}

impl FixedTime {
    fn new(unix_time: u64) -> FixedTime {
        let stamp = timestamp(unix_time);
        let date = Date { year: 1980 + (stamp.date >> 9), month: stamp.date >> 5 & 15, day: stamp.date & 31 };
        let (hour, min, sec) = (stamp.time >> 11, stamp.time >> 5 & 63, (stamp.time & 31) * 2);
        FixedTime { date_time: DateTime { date, time: Time { hour, min, sec, millis: 0 } } }
    }
}

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        self.date_time.date
    }

    fn get_current_date_time(&self) -> DateTime {
        self.date_time
    }
}
