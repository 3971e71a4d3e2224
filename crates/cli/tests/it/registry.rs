//! Debian's registry server on a free port of this machine.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use tempfile::TempDir;

/// A registry that serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    server: Child,
    address: String,
    requests: Arc<Log>,
    _storage: TempDir,
}

impl Registry {
    /// Starts an empty one and waits until it listens.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// One that knows `user` with the password `secret` alone.
    pub(crate) fn start_with_password(work: &Path) -> Self {
        let users = work.join("htpasswd");
        // bcrypt of "secret", cost 4.
        let line = "user:$2b$04$z0RSG5Jt/fBjsAgZCGmRo.DF21Hk0g1yKUuMBLIKqssMJ9HNflvB2\n";
        std::fs::write(&users, line).unwrap();
        Self::start_with(&format!(
            "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            users.display()
        ))
    }

    fn start_with(settings: &str) -> Self {
        let storage = tempfile::tempdir().unwrap();
        // The port is free at this moment; a server that cannot have it says so below.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = storage.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{settings}",
            storage.path().join("data").display(),
        );
        std::fs::write(&config, text).unwrap();
        let mut server = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(server.stderr.take().unwrap()).lines();
        let said = words.by_ref().map_while(Result::ok).find(|line| line.contains("listening on"));
        assert!(said.is_some(), "the registry did not start on {address}");
        // It writes a line for every request: somebody must read them.
        thread::spawn(move || words.for_each(drop));
        let requests = Arc::new(Log::default());
        let (out, log) = (server.stdout.take().unwrap(), Arc::clone(&requests));
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                log.lines.lock().unwrap().push(line);
                log.changed.notify_all();
            }
        });
        Self { server, address, requests, _storage: storage }
    }

    /// How often each blob was asked for, as the access log has it. Call when no client is left.
    pub(crate) fn blob_requests(&self) -> BTreeMap<String, usize> {
        // The log may lag behind the answers; it is complete when a last request is in it.
        let mark = format!("/v2/mark{}/tags/list", self.requests.lines.lock().unwrap().len());
        let mut last = TcpStream::connect(&self.address).unwrap();
        write!(last, "GET {mark} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        io::copy(&mut last, &mut io::sink()).unwrap();
        let lines = self.requests.lines.lock().unwrap();
        let missing = |lines: &mut Vec<String>| !lines.iter().any(|line| line.contains(&mark));
        let deadline = Duration::from_secs(60);
        let (lines, timeout) =
            self.requests.changed.wait_timeout_while(lines, deadline, missing).unwrap();
        assert!(!timeout.timed_out(), "{lines:?}");
        let mut counts = BTreeMap::new();
        for line in lines.iter().filter(|line| line.contains("\"GET ")) {
            let Some((_, digest)) = line.split_once("/blobs/sha256:") else { continue };
            *counts.entry(digest[..64].to_owned()).or_default() += 1;
        }
        counts
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

/// What the registry has been asked.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    changed: Condvar,
}

/// A way to the registry that lets only so many bytes of answers through until it is opened.
#[derive(Debug)]
pub(crate) struct Gate {
    address: String,
    state: Arc<GateState>,
}

#[derive(Debug)]
struct GateState {
    left: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// Lets `bytes` through.
    pub(crate) fn new(registry: &Registry, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(GateState { left: Mutex::new(bytes), changed: Condvar::new() });
        let (registry, shared) = (registry.address.clone(), Arc::clone(&state));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(&registry).unwrap();
                let (client_in, server_in) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || forward(client_in, server, None));
                let shared = Arc::clone(&shared);
                thread::spawn(move || forward(server_in, client, Some(&shared)));
            }
        });
        Self { address, state }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Waits until it holds bytes back.
    pub(crate) fn wait_until_closed(&self) {
        let left = self.state.left.lock().unwrap();
        let deadline = Duration::from_secs(60);
        let (_left, timeout) =
            self.state.changed.wait_timeout_while(left, deadline, |left| *left > 0).unwrap();
        assert!(!timeout.timed_out(), "nobody fetches enough");
    }

    /// Lets everything through from now on.
    pub(crate) fn open(&self) {
        *self.state.left.lock().unwrap() = usize::MAX;
        self.state.changed.notify_all();
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, gate: Option<&GateState>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if let Some(gate) = gate {
            let mut left = gate.left.lock().unwrap();
            while *left == 0 {
                left = gate.changed.wait(left).unwrap();
            }
            *left = left.saturating_sub(count);
            gate.changed.notify_all();
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Fails only where the other end is gone already.
    let _gone = to.shutdown(Shutdown::Both);
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}
