//! Copies of files with holes that cost as little as the file system lets them.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::AsFd,
};

use rustix::{fs::SeekFrom, io::Errno};

/// Most bytes that one call copies; the kernel copies less at a time anyway.
const MOST: u64 = 1 << 30;

/// Makes `to`, which is empty, a copy of `from`: shared blocks where the file system has them
/// (`FICLONE`), else the stretches that have data.
///
/// # Errors
/// What the kernel reported; `to` holds a part then.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    match rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()) {
        Ok(()) => return Ok(()),
        // Those of two file systems, and of file systems and kernels that cannot.
        Err(
            Errno::XDEV
            | Errno::OPNOTSUPP
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY,
        ) => {}
        Err(errno) => return Err(errno.into()),
    }
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let (start, end) = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => (start, rustix::fs::seek(from, SeekFrom::Hole(start))?.min(size)),
            Err(Errno::NXIO) => break,
            // A file system that does not know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, size),
            Err(errno) => return Err(errno.into()),
        };
        copy_stretch(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_stretch(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let len = usize::try_from((end - read_at).min(MOST)).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), len);
        match copied {
            // It became shorter meanwhile; the rest reads as zeros.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return copy_through_here(from, to, read_at, end);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_through_here(mut from: &File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    from.seek(io::SeekFrom::Start(start))?;
    to.seek(io::SeekFrom::Start(start))?;
    let mut buffer = vec![0; 1 << 20];
    let mut left = end - start;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match from.read(&mut buffer[..most]) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                to.write_all(&buffer[..len])?;
                left -= len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_clone_is_the_same_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let from = File::create_new(dir.path().join("from")).unwrap();
        from.set_len(1 << 28).unwrap();
        for offset in [0, 70_000, (1 << 27) + 5, (1 << 28) - 3] {
            from.write_all_at(b"abc", offset).unwrap();
        }
        drop(from);
        let from = File::open(dir.path().join("from")).unwrap();
        let to = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("to"))
            .unwrap();
        clone_file(&from, &to).unwrap();
        assert!(same(&from, &to));
        assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks());
        let elsewhere = tempfile::tempfile_in("/dev/shm").unwrap();
        clone_file(&from, &elsewhere).unwrap();
        assert!(same(&from, &elsewhere));
    }

    fn same(one: &File, other: &File) -> bool {
        let len = one.metadata().unwrap().len();
        let piece = |file: &File, at| {
            let mut piece = vec![0; 1 << 20];
            file.read_exact_at(&mut piece, at).unwrap();
            piece
        };
        len == other.metadata().unwrap().len()
            && (0..len).step_by(1 << 20).all(|at| piece(one, at) == piece(other, at))
    }
}
