//! Debian's registry server on a free port of this machine.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

/// A registry that serves until it is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    server: Child,
    address: String,
    _storage: TempDir,
}

impl Registry {
    /// Starts an empty one and waits until it listens.
    pub(crate) fn start() -> Self {
        let storage = tempfile::tempdir().unwrap();
        // The port is free at this moment; a server that cannot have it says so below.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let config = storage.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            storage.path().join("data").display(),
        );
        std::fs::write(&config, text).unwrap();
        let mut server = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(server.stderr.take().unwrap()).lines();
        let said = words.by_ref().map_while(Result::ok).find(|line| line.contains("listening on"));
        assert!(said.is_some(), "the registry did not start on {address}");
        // It writes a line for every request: somebody must read them.
        thread::spawn(move || words.for_each(drop));
        Self { server, address, _storage: storage }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}
