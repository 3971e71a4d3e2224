//! `msb image inspect`: all that is known of an image. The fields are described in `docs/cli.md`.

use std::{collections::BTreeMap, path::Path};

use microsandbox::image::Image;
use serde::Serialize;

use crate::output;

/// Arguments of `msb image inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the image
    reference: String,
}

#[derive(Debug, Serialize)]
struct Inspection<'a> {
    references: Vec<String>,
    digest: String,
    config_digest: String,
    platform: String,
    created: Option<&'a str>,
    size_bytes: u64,
    download_bytes: u64,
    layers: Vec<Layer>,
    config: Config<'a>,
    disk: &'a Path,
}

#[derive(Debug, Serialize)]
struct Layer {
    diff_id: String,
    download_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Config<'a> {
    env: &'a [String],
    entrypoint: &'a [String],
    cmd: &'a [String],
    working_dir: Option<&'a str>,
    user: Option<&'a str>,
    exposed_ports: &'a [String],
    volumes: &'a [String],
    labels: &'a BTreeMap<String, String>,
    stop_signal: Option<&'a str>,
}

/// Shows it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let image = Image::local(&args.reference)?;
    let config = image.config();
    let layers = image.diff_ids().into_iter().zip(image.layer_download_bytes());
    output::json(&Inspection {
        references: image.references().iter().map(|name| name.familiar()).collect(),
        digest: image.digest(),
        config_digest: image.config_digest(),
        platform: image.platform(),
        created: config.created.as_deref(),
        size_bytes: image.size_bytes(),
        download_bytes: image.download_bytes(),
        layers: layers.map(|(diff_id, download_bytes)| Layer { diff_id, download_bytes }).collect(),
        config: Config {
            env: &config.env,
            entrypoint: &config.entrypoint,
            cmd: &config.cmd,
            working_dir: config.working_dir.as_deref(),
            user: config.user.as_deref(),
            exposed_ports: &config.exposed_ports,
            volumes: &config.volumes,
            labels: &config.labels,
            stop_signal: config.stop_signal.as_deref(),
        },
        disk: image.disk(),
    })
}
