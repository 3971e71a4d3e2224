//! `msb image`: the images in the store.

use crate::commands::{load, pull, save};

mod df;
mod files;
mod gc;
mod inspect;
mod ls;
mod names;

/// Commands on images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the images in the store.
    Ls(ls::Args),
    /// Show all that is known of an image, as JSON.
    Inspect(inspect::Args),
    /// List files of an image without booting it.
    LsFiles(files::ListArgs),
    /// Write a file of an image to standard output.
    Cat(files::CatArgs),
    /// Give an image another name.
    Tag(names::TagArgs),
    /// Take names away, and images that no name and no sandbox needs.
    Rm(names::RmArgs),
    /// Say what takes the space of the store.
    Df(df::Args),
    /// Remove what no name and no sandbox needs.
    Gc(gc::Args),
    /// Fetch an image from its registry; as `msb pull`.
    Pull(pull::Args),
    /// Load images from an archive; as `msb load`.
    Load(load::Args),
    /// Save images to an archive; as `msb save`.
    Save(save::Args),
}

/// Does what is asked for.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Ls(args) => ls::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::LsFiles(args) => files::list(&args),
        Command::Cat(args) => files::cat(&args),
        Command::Tag(args) => names::tag(&args),
        Command::Rm(args) => names::remove(args).await,
        Command::Df(args) => df::run(args).await,
        Command::Gc(args) => gc::run(args).await,
        Command::Pull(args) => pull::run(args).await,
        Command::Load(args) => load::run(args).await,
        Command::Save(args) => save::run(args).await,
    }
}

/// Hexadecimal digits of a digest that a person needs to tell images apart.
const DIGITS: usize = 12;

fn short(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, hex)| hex).chars().take(DIGITS).collect()
}

/// The names in a table: an image without one has a row all the same.
fn shown(references: &[microsandbox::Reference]) -> Vec<String> {
    match references {
        [] => vec!["<none>".into()],
        names => names.iter().map(microsandbox::Reference::familiar).collect(),
    }
}
