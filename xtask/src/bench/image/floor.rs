//! The floor: what no converter can leave out. Each layer is read, unpacked, digested as it travels and as it
//! unpacks, written once and synced; nothing is parsed and nothing else is written. Largest layers first, one
//! core for each.
//!
//! Same libraries as the product. A layer that is not compressed has one digest, as its two are the same.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const READ_BYTES: usize = 128 << 10;
const WRITE_BYTES: usize = 512 << 10;

/// `bench floor`: takes the layers of the one image of the OCI layout `layout` into the folder `into`.
pub(crate) fn run(layout: &Path, into: &Path) -> Result<()> {
    let layers = Mutex::new(layers(layout)?.into_iter().enumerate());
    let work = || -> Result<()> {
        loop {
            let next = layers.lock().expect("no thread panics with it").next();
            let Some((index, layer)) = next else { return Ok(()) };
            take(&layer, &into.join(index.to_string()))
                .with_context(|| format!("take the layer {}", layer.display()))?;
        }
    };
    let cores = thread::available_parallelism().context("count the cores")?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores.get()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })
}

/// The layers' files, largest first.
fn layers(layout: &Path) -> Result<Vec<PathBuf>> {
    let read = |path: &Path| -> Result<Value> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    };
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("a descriptor has no digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let index = read(&layout.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0])?)?;
    let mut layers = manifest["layers"].as_array().context("the image has no layers")?.clone();
    layers.sort_by_key(|layer| std::cmp::Reverse(layer["size"].as_u64()));
    layers.iter().map(blob).collect()
}

fn take(layer: &Path, into: &Path) -> io::Result<()> {
    let mut input = File::open(layer)?;
    let mut magic = [0; 2];
    input.read_exact(&mut magic)?;
    let input = Digesting { input: File::open(layer)?, hasher: Sha256::new() };
    let input = BufReader::with_capacity(READ_BYTES, input);
    let mut output = File::create(into)?;
    if magic == [0x1f, 0x8b] {
        let unpacked = flate2::bufread::MultiGzDecoder::new(input);
        copy(Digesting { input: unpacked, hasher: Sha256::new() }, &mut output)?;
    } else {
        copy(input, &mut output)?;
    }
    output.sync_all()
}

fn copy(mut input: impl Read, output: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; WRITE_BYTES];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match input.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        output.write_all(&buffer[..filled])?;
        if filled < buffer.len() {
            return Ok(());
        }
    }
}

/// Digests what is read. The digest itself is of no use here: computing it is what counts.
struct Digesting<R> {
    input: R,
    hasher: Sha256,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
