//! `msb image ls-files` and `msb image cat`: files of an image, without booting it.

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use microsandbox::image::{FileKind, FileStat, Image, ImageFiles, Links};
use serde::Serialize;

use crate::output::{self, Format};

/// Arguments of `msb image ls-files`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Name of the image
    reference: String,
    /// Directory or file inside the image
    #[arg(default_value = "/")]
    path: PathBuf,
    /// Everything beneath the directory, as full paths
    #[arg(short, long)]
    recursive: bool,
    /// With mode, owner, size, time and target
    #[arg(short, long)]
    long: bool,
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Arguments of `msb image cat`.
#[derive(Debug, clap::Args)]
pub(crate) struct CatArgs {
    /// Name of the image
    reference: String,
    /// File inside the image; links are followed
    path: PathBuf,
}

/// A file in the list.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size_bytes: u64,
    modified_at: DateTime<Utc>,
    target: Option<String>,
    device: Option<String>,
    xattrs: Vec<String>,
}

impl Entry {
    fn new(name: &OsString, stat: &FileStat) -> Self {
        let (target, device) = match &stat.kind {
            FileKind::Symlink { target } => (Some(target.to_string_lossy().into_owned()), None),
            FileKind::BlockDevice { major, minor } | FileKind::CharDevice { major, minor } => {
                (None, Some(format!("{major}:{minor}")))
            }
            _ => (None, None),
        };
        let xattrs = stat.xattrs.iter();
        Self {
            name: name.to_string_lossy().into_owned(),
            kind: kind(&stat.kind).0,
            mode: format!("{:04o}", stat.permissions),
            uid: stat.uid,
            gid: stat.gid,
            size_bytes: stat.size_bytes,
            modified_at: stat.modified.into(),
            target,
            device,
            xattrs: xattrs.map(|(name, _)| name.to_string_lossy().into_owned()).collect(),
        }
    }
}

/// Lists files.
pub(crate) fn list(args: &ListArgs) -> anyhow::Result<()> {
    let files = Image::local(&args.reference)?.files()?;
    let found = found(args, &files)?;
    if args.format == Format::Json {
        let entries: Vec<Entry> = found.iter().map(|(name, stat)| Entry::new(name, stat)).collect();
        return output::json(&entries);
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    // Names are an image's own: a terminal must not take them for orders.
    let is_terminal = io::stdout().is_terminal();
    let mut write = |name: &OsString, stat: &FileStat| -> io::Result<()> {
        let mut line = if args.long { attributes(stat).into_bytes() } else { Vec::new() };
        line.extend_from_slice(name.as_bytes());
        if let (true, FileKind::Symlink { target }) = (args.long, &stat.kind) {
            line.extend_from_slice(b" -> ");
            line.extend_from_slice(target.as_os_str().as_bytes());
        }
        if is_terminal {
            line = String::from_utf8_lossy(&line).replace(char::is_control, "?").into_bytes();
        }
        line.push(b'\n');
        out.write_all(&line)
    };
    output::written(found.iter().try_for_each(|(name, stat)| write(name, stat)))?;
    output::written(out.flush())
}

fn found(args: &ListArgs, files: &ImageFiles) -> anyhow::Result<Vec<(OsString, FileStat)>> {
    let own = files.stat(&args.path, Links::Follow)?;
    if own.kind != FileKind::Directory {
        return Ok(vec![(args.path.clone().into(), own)]);
    }
    if !args.recursive {
        return Ok(files.list(&args.path)?);
    }
    let walked = files.walk(&args.path)?;
    Ok(walked.into_iter().map(|(path, stat)| (path.into(), stat)).collect())
}

/// What `ls -ln` shows before the name.
fn attributes(stat: &FileStat) -> String {
    let size = match stat.kind {
        FileKind::BlockDevice { major, minor } | FileKind::CharDevice { major, minor } => {
            format!("{major}:{minor}")
        }
        _ => stat.size_bytes.to_string(),
    };
    let time = DateTime::<Utc>::from(stat.modified).format("%F %R");
    format!(
        "{}{} {:>5} {:>5} {size:>10} {time} ",
        kind(&stat.kind).1,
        permissions(stat.permissions),
        stat.uid,
        stat.gid
    )
}

/// `rwxr-xr-x`, with the special bits where `ls` has them.
fn permissions(bits: u16) -> String {
    let mut text = String::new();
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let class = bits >> shift;
        text.push(if class & 4 == 0 { '-' } else { 'r' });
        text.push(if class & 2 == 0 { '-' } else { 'w' });
        text.push(match (class & 1 != 0, bits & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// The kind in words and as `ls` has it.
fn kind(kind: &FileKind) -> (&'static str, char) {
    match kind {
        FileKind::BlockDevice { .. } => ("block-device", 'b'),
        FileKind::CharDevice { .. } => ("char-device", 'c'),
        FileKind::Directory => ("directory", 'd'),
        FileKind::Fifo => ("fifo", 'p'),
        FileKind::File => ("file", '-'),
        FileKind::Socket => ("socket", 's'),
        FileKind::Symlink { .. } => ("symlink", 'l'),
        _ => ("other", '?'),
    }
}

/// Writes a file as it is.
pub(crate) fn cat(args: &CatArgs) -> anyhow::Result<()> {
    let path: &Path = &args.path;
    let mut content = Image::local(&args.reference)?.files()?.read(path)?;
    let mut out = io::stdout().lock();
    output::written(io::copy(&mut content, &mut out).and_then(|_| out.flush()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_look_as_ls_has_them() {
        for (bits, text) in [
            (0o755, "rwxr-xr-x"),
            (0o4755, "rwsr-xr-x"),
            (0o2644, "rw-r-Sr--"),
            (0o1777, "rwxrwxrwt"),
            (0o1000, "--------T"),
            (0, "---------"),
        ] {
            assert_eq!(permissions(bits), text, "{bits:o}");
        }
    }
}
