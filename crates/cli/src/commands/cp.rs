//! `msb cp`: files and trees between the host, sandboxes and tar streams.
//!
//! What goes where is decided here, by the rules of `docker cp`; the copying is the facade's.

use std::{
    ffi::OsStr,
    fs,
    io::{self, IsTerminal},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use microsandbox::{
    FsCopyOptions, FsEntryKind, FsReadStream, FsWriteSink, MicrosandboxError, Sandbox, SandboxFs,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    interrupt::Interrupts,
    output::{self, copy::CopyView},
};

/// Arguments of `msb cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// What to copy: PATH, NAME:PATH, or - for a tar stream from standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where to: PATH, NAME:PATH, or - for a tar stream to standard output
    #[arg(value_name = "DESTINATION")]
    destination: String,
    /// Keep owners and set-id bits, and copy devices
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link at the end of SOURCE leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
}

const AFTER_HELP: &str = "\
A destination that is a directory gets the source in it, under its own name; SOURCE/. copies what is
in the directory instead. One that does not exist becomes the copy. Paths in a sandbox begin at /.";

/// One piece of a tar stream from standard input.
const PIECE: usize = 128 << 10;

/// An end of a copy, as the command line names it.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Host(PathBuf),
    Sandbox { name: String, path: PathBuf },
    Stream,
}

impl Place {
    /// `NAME:PATH` is in a sandbox; a path with a colon is told from it by a slash before that.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((name, path)) if !name.is_empty() && !name.contains('/') => {
                let path = if path.is_empty() { "/" } else { path };
                Self::Sandbox { name: name.to_owned(), path: path.into() }
            }
            _ => Self::Host(text.into()),
        }
    }
}

/// Copies. A signal ends it; files are whole or as they were then.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let view = CopyView::new(args.quiet);
    let mut options = FsCopyOptions::default().progress(view.counter());
    if args.archive {
        options = options.keep_owners();
    }
    if !args.follow_link {
        options = options.keep_links();
    }
    let copy = Copy { options, follow: args.follow_link, view: &view };
    let ends = (Place::parse(&args.source), Place::parse(&args.destination));
    tokio::select! {
        copied = copy.between(ends) => copied,
        interrupt = interrupts.next() => Err(interrupt.into()),
    }
}

struct Copy<'a> {
    options: FsCopyOptions,
    follow: bool,
    view: &'a CopyView,
}

impl Copy<'_> {
    async fn between(&self, ends: (Place, Place)) -> anyhow::Result<()> {
        match ends {
            (Place::Host(from), Place::Sandbox { name, path }) => {
                let sandbox = connect(&name).await?;
                self.host_to(&from, sandbox.fs(), &path).await
            }
            (Place::Sandbox { name, path }, Place::Host(to)) => {
                let sandbox = connect(&name).await?;
                self.guest_to(sandbox.fs(), &path, &to).await
            }
            (
                Place::Sandbox { name, path },
                Place::Sandbox { name: other_name, path: other_path },
            ) => {
                let (sandbox, other) = (connect(&name).await?, connect(&other_name).await?);
                let (fs, other) = (sandbox.fs(), other.fs());
                let source = self.guest_source(fs, &path).await?;
                let to = target(&source, &other_path, guest_kind(other, &other_path).await?)?;
                Ok(fs.copy_to_sandbox(&path, other, to, &self.options).await?)
            }
            (Place::Stream, Place::Sandbox { name, path }) => {
                let sandbox = connect(&name).await?;
                let sink = sandbox.fs().unpack_with(&path, &self.options).await?;
                unpack_input(&sink).await?;
                Ok(sink.close().await?)
            }
            (Place::Sandbox { name, path }, Place::Stream) => {
                let sandbox = connect(&name).await?;
                self.pack_output(sandbox.fs(), &path).await
            }
            _ => bail!("copy: one of SOURCE and DESTINATION is in a sandbox, as NAME:PATH"),
        }
    }

    async fn host_to(&self, from: &Path, to: SandboxFs<'_>, path: &Path) -> anyhow::Result<()> {
        let look = if self.follow { fs::metadata(from) } else { fs::symlink_metadata(from) };
        let metadata = look.with_context(|| format!("look at {}", from.display()))?;
        self.view.expect((!metadata.is_dir()).then_some(metadata.len()));
        let source = Source { path: from, is_directory: metadata.is_dir() };
        let to_path = target(&source, path, guest_kind(to, path).await?)?;
        Ok(to.copy_from_host_with(from, to_path, &self.options).await?)
    }

    async fn guest_to(&self, from: SandboxFs<'_>, path: &Path, to: &Path) -> anyhow::Result<()> {
        let source = self.guest_source(from, path).await?;
        let kind = match fs::metadata(to) {
            Ok(metadata) if metadata.is_dir() => Some(Kind::Directory),
            Ok(_) => Some(Kind::File),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("look at {}", to.display())),
        };
        let to = target(&source, to, kind)?;
        Ok(from.copy_to_host_with(path, to, &self.options).await?)
    }

    async fn guest_source<'p>(
        &self,
        fs: SandboxFs<'_>,
        path: &'p Path,
    ) -> anyhow::Result<Source<'p>> {
        let metadata = if self.follow { fs.stat(path).await? } else { fs.stat_link(path).await? };
        let is_directory = metadata.kind == FsEntryKind::Directory;
        self.view.expect((!is_directory).then_some(metadata.size));
        Ok(Source { path, is_directory })
    }

    async fn pack_output(&self, fs: SandboxFs<'_>, path: &Path) -> anyhow::Result<()> {
        if io::stdout().is_terminal() {
            bail!("write a tar stream: standard output is a terminal; send it to a file or a pipe");
        }
        let source = Source { path, is_directory: false };
        let mut stream: FsReadStream =
            fs.pack_with(path, source.name().unwrap_or_default(), &self.options).await?;
        let mut stdout = tokio::io::stdout();
        while let Some(piece) = stream.recv().await? {
            output::written(stdout.write_all(&piece).await)?;
        }
        output::written(stdout.flush().await)
    }
}

async fn connect(name: &str) -> anyhow::Result<Sandbox> {
    Ok(Sandbox::get(name).await?.connect().await?)
}

async fn unpack_input(sink: &FsWriteSink) -> anyhow::Result<()> {
    let mut stdin = tokio::io::stdin();
    let mut piece = vec![0; PIECE];
    loop {
        match stdin.read(&mut piece).await.context("read the tar stream")? {
            0 => return Ok(()),
            len => sink.write(&piece[..len]).await?,
        }
    }
}

/// What is copied.
#[derive(Debug)]
struct Source<'a> {
    path: &'a Path,
    is_directory: bool,
}

impl<'a> Source<'a> {
    /// Its own name; none where what is in a directory is meant: `.`, `..`, `/` and `DIR/.`.
    fn name(&self) -> Option<&'a OsStr> {
        self.path.file_name().filter(|_| !self.path.as_os_str().as_bytes().ends_with(b"/."))
    }
}

/// What is at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

async fn guest_kind(fs: SandboxFs<'_>, path: &Path) -> anyhow::Result<Option<Kind>> {
    match fs.stat(path).await {
        Ok(metadata) if metadata.kind == FsEntryKind::Directory => Ok(Some(Kind::Directory)),
        Ok(_) => Ok(Some(Kind::File)),
        Err(MicrosandboxError::SandboxFs(error)) if error.io_kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The copy's own path.
fn target(source: &Source<'_>, to: &Path, there: Option<Kind>) -> anyhow::Result<PathBuf> {
    let shown = to.display();
    Ok(match (there, source.name()) {
        (Some(Kind::Directory), Some(name)) => to.join(name),
        (Some(Kind::Directory), None) => to.join("."),
        (Some(Kind::File), _) if source.is_directory => {
            bail!("copy the directory {} to {shown}: that is a file", source.path.display())
        }
        (None, _) if !source.is_directory && to.as_os_str().as_bytes().ends_with(b"/") => {
            bail!("copy {} to {shown}: there is no such directory", source.path.display())
        }
        _ => to.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_without_a_slash_before_it_names_a_sandbox() {
        let inside =
            |name: &str, path: &str| Place::Sandbox { name: name.into(), path: path.into() };
        for (text, place) in [
            ("box:/etc", inside("box", "/etc")),
            ("box:etc/a:b", inside("box", "etc/a:b")),
            ("box:", inside("box", "/")),
            ("-", Place::Stream),
            ("./a:b", Place::Host("./a:b".into())),
            ("/a:b", Place::Host("/a:b".into())),
            (":x", Place::Host(":x".into())),
            ("file", Place::Host("file".into())),
        ] {
            assert_eq!(Place::parse(text), place, "{text}");
        }
    }

    #[test]
    fn a_copy_goes_where_docker_puts_it() {
        use Kind::{Directory, File};
        for (source, is_directory, to, there, expected) in [
            ("a/f", false, "d", Some(Directory), Some("d/f")),
            ("a/f", false, "g", Some(File), Some("g")),
            ("a/f", false, "g", None, Some("g")),
            ("a/f", false, "g/", None, None),
            ("a", true, "d", Some(Directory), Some("d/a")),
            ("a/", true, "d", Some(Directory), Some("d/a")),
            ("a/.", true, "d", Some(Directory), Some("d/.")),
            (".", true, "d", Some(Directory), Some("d/.")),
            ("/", true, "d", Some(Directory), Some("d/.")),
            ("a", true, "d", None, Some("d")),
            ("a/.", true, "d", None, Some("d")),
            ("a", true, "d/", None, Some("d/")),
            ("a", true, "f", Some(File), None),
        ] {
            let source = Source { path: Path::new(source), is_directory };
            let found = target(&source, Path::new(to), there).ok();
            let found = found.map(|path| path.into_os_string().into_string().expect("is UTF-8"));
            assert_eq!(found.as_deref(), expected, "{source:?} to {to}, {there:?}");
        }
    }
}
