//! A registry that says what a test wants it to say, byte for byte.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Result;
use microsandbox_image::Digest;

use crate::tarball::{file, tarball};

/// One request, as far as scripts look at it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// First byte asked for.
    pub(crate) range: Option<usize>,
    pub(crate) authorization: Option<String>,
    /// Requests for this path before this one.
    pub(crate) earlier: usize,
}

/// What is sent back, and whether the connection then stays open without a word.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    stalls: bool,
}

impl Answer {
    pub(crate) fn new(status: &str, headers: &[(&str, String)], body: impl AsRef<[u8]>) -> Self {
        let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let bytes = [format!("{head}\r\n").as_bytes(), body.as_ref()].concat();
        Self { bytes, stalls: false }
    }

    /// A whole body with its length.
    pub(crate) fn ok(body: impl AsRef<[u8]>) -> Self {
        let length = body.as_ref().len().to_string();
        Self::new("200 OK", &[("Content-Length", length)], body)
    }

    /// A body that is longer or shorter than the answer says.
    pub(crate) fn lying(length: usize, body: impl AsRef<[u8]>) -> Self {
        Self::new("200 OK", &[("Content-Length", length.to_string())], body)
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new("307 Temporary Redirect", &[("Location", to.into())], "")
    }

    pub(crate) fn then_stalls(mut self) -> Self {
        self.stalls = true;
        self
    }
}

type Script = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

/// A server on a loopback port; lives as long as the test program.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers what `script` says; what it has no answer for is not found.
    pub(crate) fn start(
        script: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (script, log): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&requests));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, log) = (Arc::clone(&script), Arc::clone(&log));
                // A client that goes away is what many scripts are about.
                thread::spawn(move || drop(serve(&stream, &*script, &log)));
            }
        });
        Ok(Self { address, requests })
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no server thread panics").clone()
    }
}

fn serve(stream: &TcpStream, script: &Script, log: &Mutex<Vec<Request>>) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut request = Request {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        ..Request::default()
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let start = value.trim_start_matches("bytes=").trim_end_matches('-');
                request.range = start.parse().ok();
            }
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    {
        let mut log = log.lock().expect("no server thread panics");
        request.earlier = log.iter().filter(|other| other.path == request.path).count();
        log.push(request.clone());
    }
    let answer = match request.path.as_str() {
        "/v2/" => Answer::ok("{}"),
        _ => script(&request).unwrap_or_else(|| Answer::new("404 Not Found", &[], "")),
    };
    let mut stream = stream;
    stream.write_all(&answer.bytes)?;
    if answer.stalls {
        // Until the client has had enough.
        std::io::copy(&mut stream.try_clone()?, &mut std::io::sink())?;
    }
    Ok(())
}

/// A sound image of one layer, to be made unsound.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) layer: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl Sample {
    pub(crate) fn new() -> Self {
        let layer = tarball(&[file("file", vec![b'x'; 100_000])]);
        let diff_id = Digest::of(&layer).to_string();
        Self::promising(layer, &[diff_id])
    }

    /// An image of this layer whose configuration promises these diff ids.
    pub(crate) fn promising(layer: Vec<u8>, diff_ids: &[String]) -> Self {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
        );
        Self::with_config(layer, config)
    }

    pub(crate) fn with_config(layer: Vec<u8>, config: impl Into<Vec<u8>>) -> Self {
        let config = config.into();
        let manifest = manifest(&config, &layer, "");
        Self { layer, config, manifest }
    }

    /// What a well-behaved registry answers.
    pub(crate) fn answer(&self, request: &Request) -> Option<Answer> {
        let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
        let path = &request.path;
        if path.contains("/manifests/") {
            return Some(Answer::ok(&self.manifest));
        }
        if path.ends_with(&digest(&self.config)) {
            return Some(Answer::ok(&self.config));
        }
        if !path.ends_with(&digest(&self.layer)) {
            return None;
        }
        Some(match request.range {
            None => Answer::ok(&self.layer),
            Some(start) => self.part(start),
        })
    }

    /// The layer from byte `start` on, as such.
    pub(crate) fn part(&self, start: usize) -> Answer {
        let (rest, len) = (&self.layer[start..], self.layer.len());
        let headers = [
            ("Content-Length", rest.len().to_string()),
            ("Content-Range", format!("bytes {start}-{}/{len}", len - 1)),
        ];
        Answer::new("206 Partial Content", &headers, rest)
    }
}

/// A manifest of these, with `extra` between its fields.
pub(crate) fn manifest(config: &[u8], layer: &[u8], extra: &str) -> Vec<u8> {
    format!(
        r#"{{"schemaVersion":2,{extra}"config":{{"digest":"{}","size":{}}},"layers":[{{"digest":"{}","size":{}}}]}}"#,
        Digest::of(config),
        config.len(),
        Digest::of(layer),
        layer.len(),
    )
    .into_bytes()
}
