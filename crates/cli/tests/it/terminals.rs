//! Commands on a real terminal: tmux, with a shell that runs `msb` in it.

use std::{
    fs::File,
    io::Read,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use rustix::process::Signal;

use crate::home::{DEADLINE, Home, is_ready};

/// A tmux server of its own with one window, 80 by 24.
struct Tmux {
    socket: PathBuf,
    /// What the window's program writes: something to wait for.
    written: File,
}

impl Tmux {
    /// A window with a shell in which `msb` is the one under test, in `home`.
    fn start(home: &Home) -> Self {
        let (socket, pipe) = (home.path().join("tmux"), home.path().join("tmux.pipe"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // Opened for both, so that neither end waits for the other.
        let written = File::options().read(true).write(true).open(&pipe).unwrap();
        let tmux = Self { socket, written };
        let msb = home.msb(&[]);
        let program = PathBuf::from(msb.get_program());
        let path = format!("PATH={}:/usr/bin:/bin", program.parent().unwrap().display());
        let msb_home = format!("MSB_HOME={}", home.path().display());
        let shell = ["env", &path, &msb_home, "MSB_BOOT=cold", "PS1=host> ", "sh"];
        tmux.tell(&[&["new-session", "-d", "-x", "80", "-y", "24"], &shell[..]].concat());
        tmux.tell(&["pipe-pane", &format!("cat > {}", pipe.display())]);
        tmux
    }

    fn tell(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-f", "/dev/null", "-S"]).arg(&self.socket).args(arguments);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "tmux {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Types a line.
    fn line(&self, text: &str) {
        self.tell(&["send-keys", "-l", text]);
        self.keys("Enter");
    }

    /// Presses keys as tmux names them.
    fn keys(&self, keys: &str) {
        self.tell(&["send-keys", keys]);
    }

    /// Waits until the screen shows what `wanted` looks for.
    #[track_caller]
    fn see(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let screen = self.tell(&["capture-pane", "-p"]);
            if wanted(&screen) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(is_ready(self.written.as_fd(), left), "never seen: {what}\n{screen}");
            let _written = self.written.read(&mut [0; 4096]).unwrap();
        }
    }

    /// Waits until the last line that is not empty is `line`.
    #[track_caller]
    fn see_last(&mut self, line: &str) {
        self.see(line, |screen| screen.trim_end().lines().last() == Some(line));
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.tell(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.tell(&["kill-server"]);
    }
}

fn with_box() -> (Home, Tmux) {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox", "-e", "PS1=guest> "], 0, "box\n", "");
    let mut tmux = Tmux::start(&home);
    tmux.see_last("host>");
    (home, tmux)
}

/// Sees that the host's terminal reads lines and echoes again.
#[track_caller]
fn terminal_is_restored(tmux: &mut Tmux, word: &str) {
    let modes = "stty -a | tr ' ;' '\\n\\n' | grep -x -e -icanon -e -echo";
    tmux.line(&format!("{modes}; echo {word}'-seen'"));
    tmux.see(word, |screen| screen.contains(&format!("\n{word}-seen")));
    let screen = tmux.tell(&["capture-pane", "-p"]);
    assert!(!screen.contains("\n-icanon") && !screen.contains("\n-echo"), "{screen}");
}

#[test]
fn a_shell_on_the_terminal_has_job_control_and_the_windows_size() {
    let (_home, mut tmux) = with_box();
    tmux.line("msb exec -it box -- sh; echo code=$?");
    tmux.see_last("guest>");
    tmux.line("stty size; tty");
    tmux.see("24 80", |screen| screen.contains("24 80\n/dev/pts/0"));
    // A key that comes while the shell still has the terminal is the shell's.
    tmux.line("echo asleep; sleep 1000");
    tmux.see("sleep", |screen| screen.contains("\nasleep"));
    tmux.keys("C-z");
    tmux.see("stopped", |screen| screen.contains("Stopped"));
    tmux.line("kill -9 %1; wait; clear");
    tmux.see_last("guest>");
    tmux.line("echo open; cat");
    tmux.see("cat", |screen| screen.contains("\nopen"));
    tmux.line("typed");
    tmux.see("an echo", |screen| screen.matches("typed").count() == 2);
    tmux.keys("C-c");
    tmux.see_last("guest>");
    tmux.resize(100, 30);
    tmux.line("clear; stty size");
    tmux.see("30 100", |screen| screen.contains("30 100"));
    tmux.line("exit 7");
    tmux.see("the host", |screen| screen.contains("code=7"));
    terminal_is_restored(&mut tmux, "exited");
}

#[test]
fn an_editor_follows_the_size_of_the_window() {
    let (_home, mut tmux) = with_box();
    tmux.line("msb shell box");
    tmux.see_last("guest>");
    tmux.line("seq 1 200 > /tmp/numbers; vi /tmp/numbers");
    tmux.see("line 23", |screen| screen.starts_with("1\n2\n") && screen.contains("\n23\n"));
    tmux.resize(80, 40);
    tmux.keys("C-l");
    tmux.see("line 39", |screen| screen.contains("\n39\n"));
    tmux.line(":s/1/first/");
    tmux.see("the edit", |screen| screen.starts_with("first\n"));
    tmux.line(":wq");
    tmux.see_last("guest>");
    tmux.line("clear; head -n 1 /tmp/numbers; exit");
    tmux.see("the file", |screen| screen.contains("first\n"));
    tmux.see_last("host>");
}

#[test]
fn detach_keys_and_signals_leave_the_terminal_as_it_was() {
    let (home, mut tmux) = with_box();
    tmux.line("msb exec -it --detach-keys ctrl-p,ctrl-q box -- sh");
    tmux.see_last("guest>");
    tmux.keys("C-p");
    tmux.keys("C-q");
    let left = "msb: detached; `msb jobs attach box 1` comes back to it";
    tmux.see("detached", |screen| screen.contains(left));
    terminal_is_restored(&mut tmux, "detached");

    // The shell that starts msb tells its number, which is msb's then.
    tmux.line("clear; sh -c 'echo $$ > $MSB_HOME/pid; exec msb exec -it box -- sh'; echo code=$?");
    tmux.see_last("guest>");
    let pid = std::fs::read_to_string(home.path().join("pid")).unwrap();
    assert!(Command::new("kill").args(["-TERM", pid.trim()]).status().unwrap().success());
    tmux.see("the end", |screen| screen.contains("code=143"));
    terminal_is_restored(&mut tmux, "terminated");
}

#[test]
fn a_shell_that_was_left_goes_on_and_is_come_back_to() {
    let (home, mut tmux) = with_box();
    tmux.line("msb shell box");
    tmux.see_last("guest>");
    tmux.line("kept=here; (until [ -e /root/go ]; do usleep 20000; done; echo wh''ile away) &");
    tmux.see("the prompt", |screen| screen.trim_end().ends_with("&\nguest>"));
    tmux.keys("C-]");
    let left = "msb: detached; `msb jobs attach box 1` comes back to it";
    tmux.see("detached", |screen| screen.contains(left));
    terminal_is_restored(&mut tmux, "left");
    home.check(&["exec", "box", "--", "touch", "/root/go"], 0, "", "");
    let mut logs = home.start(&["jobs", "logs", "-f", "box", "1"]);
    logs.expect("while away\r\n");
    logs.signal(Signal::TERM);
    logs.end();
    // Another size than before: the shell learns it when it is come back to.
    tmux.resize(70, 20);
    tmux.line("clear; msb jobs attach box 1; echo code=$?");
    tmux.see("what was missed", |screen| screen.contains("while away"));
    tmux.line("");
    tmux.see_last("guest>");
    tmux.line("echo $kept; stty size; tty");
    tmux.see("the same shell", |screen| screen.contains("here\n20 70\n/dev/pts/0"));
    tmux.resize(75, 22);
    tmux.line("until [ \"$(stty size)\" = '22 75' ]; do usleep 20000; done; echo res''ized");
    tmux.see("the new size", |screen| screen.contains("\nresized\n"));
    tmux.keys("C-]");
    tmux.see("left again", |screen| screen.contains("code=0"));
    tmux.line("clear; msb jobs attach box 1; echo code=$?");
    tmux.line("echo ba''ck");
    tmux.see("an answer", |screen| screen.contains("\nback\n"));
    tmux.line("clear; exit 7");
    tmux.see("the end", |screen| screen.contains("code=7"));
    terminal_is_restored(&mut tmux, "ended");
    home.check(&["jobs", "wait", "box", "1"], 7, "", "");
}

#[test]
fn a_job_on_a_terminal_is_attached_to_by_its_number() {
    let (home, mut tmux) = with_box();
    home.check(&["exec", "-dit", "box", "--", "sh"], 0, "1\n", "");
    tmux.line("msb jobs attach --detach-keys ctrl-a box 1; echo code=$?");
    tmux.line("echo $((6 * 7)); stty size");
    tmux.see("an answer", |screen| screen.contains("\n42\n24 80\n"));
    tmux.keys("C-a");
    tmux.see("code=0", |screen| screen.contains("code=0"));
    home.check(&["jobs", "kill", "box", "1"], 0, "", "");
    home.check(&["jobs", "wait", "box", "1"], 137, "", "");
    let piped = "msb: a job has no input but that of a terminal: use -dit\n";
    home.check(&["exec", "-di", "box", "--", "cat"], 125, "", piped);
}

#[test]
fn a_named_run_goes_on_when_its_user_has_left_it() {
    let home = Home::with_busybox();
    let mut tmux = Tmux::start(&home);
    tmux.see_last("host>");
    tmux.line("msb run -q -it --name box -e PS1='guest> ' busybox -- sh; echo code=$?");
    tmux.see_last("guest>");
    tmux.keys("C-]");
    tmux.see("code=0", |screen| screen.contains("code=0"));
    tmux.line("clear; msb jobs attach box 1; echo code=$?");
    tmux.line("exit 3");
    tmux.see("code=3", |screen| screen.contains("code=3"));
}

#[test]
fn a_terminal_that_is_not_there_is_refused() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox"], 0, "box\n", "");
    home.check(
        &["exec", "-it", "box", "--", "sh"],
        125,
        "",
        "msb: a command on the terminal is available only when standard input is a terminal\n",
    );
    home.check(&["exec", "-t", "box", "--", "tty"], 0, "/dev/pts/0\r\n", "");
}
