//! What msb pull is told by its options, the environment and Docker's settings.

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
};

use microsandbox::env;

use crate::{
    home::{Home, Ran},
    registry::Registry,
    store::{layout, text, tool},
};

/// Runs `msb pull -q` with these variables and arguments.
fn pull(home: &Home, variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let mut command = home.msb(&[&["pull", "-q"], arguments].concat());
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "DOCKER_CONFIG"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.envs(variables.iter().copied());
    home.end(command.stdin(Stdio::null()))
}

#[track_caller]
fn succeeds(ran: &Ran, name: &str) {
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.starts_with(&format!("{name} sha256:")), "{ran:?}");
}

#[track_caller]
fn fails(ran: &Ran, words: &str) {
    assert_eq!((ran.code, ran.stdout.as_str()), (125, ""));
    assert!(ran.stderr.contains(words), "{ran:?}");
}

fn push(registry: &Registry, layout: &Path, name: &str, more: &[&str]) -> String {
    let name = format!("{}/{name}", registry.address());
    let source = format!("oci:{}:latest", text(layout));
    let target = format!("docker://{name}");
    let arguments = ["copy", "-q", "--dest-tls-verify=false", &source, &target];
    tool("skopeo", &[&arguments, more].concat());
    name
}

#[test]
fn credentials_of_docker_login_are_used() {
    let (work, layout) = layout(&[4]);
    let registry = Registry::start_with_password(work.path());
    let name = push(&registry, &layout, "app:1", &["--dest-creds=user:secret"]);
    let home = Home::empty();
    let docker = work.path().join("docker");
    let programs = work.path().join("bin");
    fs::create_dir(&docker).unwrap();
    fs::create_dir(&programs).unwrap();
    let helper = |name: &str, script: &str| {
        let path = programs.join(format!("docker-credential-{name}"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    };
    helper(
        "good",
        r#"read host; echo "{\"ServerURL\":\"$host\",\"Username\":\"user\",\"Secret\":\"secret\"}""#,
    );
    helper("empty", "read host; echo credentials not found in native keychain; exit 1");
    let path = env::read(env::PATH).unwrap();
    let path =
        std::env::join_paths([programs.clone()].into_iter().chain(std::env::split_paths(&path)));
    let path = path.unwrap().into_string().unwrap();
    let address = registry.address();
    // "user:secret" and "user:wrong".
    let auths = |code: &str| format!(r#"{{"auths":{{"{address}":{{"auth":"{code}"}}}}}}"#);
    let helpers = |name: &str| format!(r#"{{"credHelpers":{{"{address}":"{name}"}}}}"#);
    for (config, accepted) in [
        (auths("dXNlcjpzZWNyZXQ="), true),
        (auths("dXNlcjp3cm9uZw=="), false),
        (helpers("good"), true),
        (r#"{"credsStore":"good"}"#.into(), true),
        (helpers("empty"), false),
        ("{}".into(), false),
    ] {
        fs::write(docker.join("config.json"), &config).unwrap();
        let ran = pull(&home, &[("DOCKER_CONFIG", text(&docker)), ("PATH", &path)], &[&name]);
        if accepted {
            succeeds(&ran, &name);
        } else {
            fails(&ran, &format!("registry {address} denies access to app"));
            fails(&ran, &format!("docker login {address}"));
            assert!(!ran.stderr.contains("wrong"), "{config}: {ran:?}");
        }
    }
}

/// A proxy that knows one host whatever it is asked for, and notes what that was.
struct Proxy {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (target, log) = (target.to_owned(), Arc::clone(&asked));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (target, log) = (target.clone(), Arc::clone(&log));
                // A client may hang up at any time.
                thread::spawn(move || drop(proxy(client, &target, &log)));
            }
        });
        Self { address, asked }
    }
}

/// Passes one connection on: what follows `CONNECT`, or a request whose target is a whole URL.
fn proxy(mut client: TcpStream, target: &str, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut input = BufReader::new(client.try_clone()?);
    let mut server = TcpStream::connect(target)?;
    let mut first = String::new();
    input.read_line(&mut first)?;
    if first.is_empty() {
        return Ok(());
    }
    log.lock().unwrap().push(first.trim().to_owned());
    if first.starts_with("CONNECT ") {
        let mut line = String::new();
        while input.read_line(&mut line)? > 2 {
            line.clear();
        }
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    } else {
        server.write_all(first.as_bytes())?;
    }
    let (mut answers, mut to_client) = (server.try_clone()?, client);
    let back = thread::spawn(move || {
        let _ended = std::io::copy(&mut answers, &mut to_client);
        to_client.shutdown(Shutdown::Both)
    });
    if first.starts_with("CONNECT ") {
        std::io::copy(&mut input, &mut server)?;
    }
    // Requests without bodies, one after the other.
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        if line.starts_with(b"GET ") {
            log.lock().unwrap().push(String::from_utf8_lossy(&line).trim().to_owned());
        }
        server.write_all(&line)?;
        line.clear();
    }
    server.shutdown(Shutdown::Write)?;
    back.join().unwrap()
}

#[test]
fn proxies_of_the_environment_are_used() {
    let (_work, layout) = layout(&[4]);
    let registry = Registry::start();
    let local = push(&registry, &layout, "team/app:1", &[]);
    let proxy = Proxy::start(registry.address());
    // No name server knows it: only the proxy can reach it.
    let name = "registry.invalid/team/app:1";
    let insecure = ["--insecure", "registry.invalid", name];
    let home = Home::empty();
    fails(&pull(&home, &[], &insecure), "reach registry registry.invalid");
    succeeds(&pull(&home, &[("HTTP_PROXY", &proxy.address)], &insecure), name);
    let asked = std::mem::take(&mut *proxy.asked.lock().unwrap());
    let manifest = "GET http://registry.invalid/v2/team/app/manifests/1 HTTP/1.1";
    assert!(asked.iter().any(|line| line == manifest), "{asked:?}");

    // With encryption the proxy only connects; what is behind it speaks none.
    let encrypted = pull(&home, &[("HTTPS_PROXY", &proxy.address)], &[name]);
    fails(&encrypted, "fetch the manifest of registry.invalid/team/app:1");
    let asked = std::mem::take(&mut *proxy.asked.lock().unwrap());
    assert!(asked.iter().all(|line| line == "CONNECT registry.invalid:443 HTTP/1.1"), "{asked:?}");
    assert!(!asked.is_empty());

    // This host is reached without.
    succeeds(&pull(&home, &[("ALL_PROXY", &proxy.address)], &[&local]), &local);
    let exempt = [("HTTP_PROXY", &*proxy.address), ("NO_PROXY", "registry.invalid")];
    fails(&pull(&home, &exempt, &insecure), "reach registry registry.invalid");
    assert_eq!(*proxy.asked.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn options_and_environment_say_the_same() {
    let (_work, layout) = layout(&[4]);
    let registry = Registry::start();
    push(&registry, &layout, "hub/team/app:1", &[]);
    let name = "registry.invalid/team/app:1";
    let mirror = format!("registry.invalid=http://{}/hub", registry.address());
    for (variables, arguments) in [
        (vec![], vec!["--mirror", &mirror, name]),
        (vec![("MSB_MIRRORS", mirror.as_str())], vec![name]),
    ] {
        let home = Home::empty();
        fails(
            &pull(&home, &[], &["--offline", name]),
            "msb: image registry.invalid/team/app:1 is not in the local store, and the network \
             must not be used\nhint: pull registry.invalid/team/app:1 where there is a network",
        );
        succeeds(&pull(&home, &variables, &arguments), name);
        // What is there needs no network, and no registry.
        for (variables, arguments) in
            [(vec![], vec!["--offline", name]), (vec![("MSB_OFFLINE", "1")], vec![name])]
        {
            succeeds(&pull(&home, &variables, &arguments), name);
        }
    }
    let home = Home::empty();
    let refused = pull(&home, &[("MSB_OFFLINE", "maybe")], &[name]);
    fails(&refused, "MSB_OFFLINE is \"maybe\", not 1 or 0");
    fails(&pull(&home, &[("MSB_MIRRORS", "x")], &[name]), "hint: write a mirror as REGISTRY=URL");
    let missing = "read certificates from /nonexistent.pem";
    fails(&pull(&home, &[], &["--ca-cert", "/nonexistent.pem", name]), missing);
    fails(&pull(&home, &[("MSB_CA_CERTS", "/nonexistent.pem")], &[name]), missing);
    let platform = pull(&home, &[], &["--platform", "linux/s390x", "--mirror", &mirror, name]);
    // The layout has one image and says of what platform it is.
    assert_eq!(platform.code, 0, "{platform:?}");
    assert_eq!(pull(&home, &[], &["--platform", "linux", name]).code, 125);
}
