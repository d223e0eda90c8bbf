//! A repository on a developer's machine, with the real git and ssh.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Failure;
use crate::dev::{Dev, Ran, run};

/// A working copy that pushes to a server.
#[derive(Debug)]
pub struct Repo {
    dir: PathBuf,
    ssh: String,
}

/// Makes a key pair; the public half's file.
fn key(dir: &Path, name: &str) -> Result<PathBuf, Failure> {
    let private = dir.join(name);
    if !private.exists() {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&private);
        run(&mut command)?.ok("ssh-keygen")?;
    }
    Ok(private)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                copy(&entry.path(), &target)?;
            }
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

impl Repo {
    /// A repository with the files of `from`, committed, whose remote `shore` is `project` on the
    /// server, pushed to with the key `key_name` (made when it does not exist; not yet added).
    pub fn new(dev: &Dev, project: &str, from: &Path, key_name: &str) -> Result<Self, Failure> {
        let private = key(dev.home(), key_name)?;
        let dir = dev.home().join(format!("repo-{project}-{key_name}"));
        copy(from, &dir)
            .map_err(|error| format!("{} cannot be copied: {error}", from.display()))?;
        let ssh = format!(
            "ssh -i {} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            private.display()
        );
        let repo = Self { dir, ssh };
        repo.git(&["init", "--quiet", "--initial-branch=main"])?.ok("git init")?;
        repo.commit("first")?;
        let url = format!("ssh://git@127.0.0.1:{}/{project}", dev.ports.ssh);
        repo.git(&["remote", "add", "shore", &url])?.ok("git remote")?;
        Ok(repo)
    }

    /// The public half of a key of [`Repo::new`].
    pub fn public_key(dev: &Dev, key_name: &str) -> Result<PathBuf, Failure> {
        Ok(key(dev.home(), key_name)?.with_extension("pub"))
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args(args)
            .current_dir(&self.dir)
            .env("GIT_SSH_COMMAND", &self.ssh)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_AUTHOR_NAME", "Test")
            .env("GIT_AUTHOR_EMAIL", "test@localhost")
            .env("GIT_COMMITTER_NAME", "Test")
            .env("GIT_COMMITTER_EMAIL", "test@localhost");
        command
    }

    /// Makes `url` the remote `shore`.
    pub fn point_to(&self, url: &str) -> Result<(), Failure> {
        self.git(&["remote", "set-url", "shore", url])?.ok("git remote").map(|_| ())
    }

    /// Runs `git ARGS`.
    pub fn git(&self, args: &[&str]) -> Result<Ran, Failure> {
        run(&mut self.command(args))
    }

    /// Commits everything there is.
    pub fn commit(&self, message: &str) -> Result<(), Failure> {
        self.git(&["add", "--all"])?.ok("git add")?;
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message])?.ok("git commit")?;
        Ok(())
    }

    /// Replaces a file and commits.
    pub fn change(&self, path: &str, text: &str) -> Result<(), Failure> {
        std::fs::write(self.dir.join(path), text).map_err(|error| error.to_string())?;
        self.commit(path)
    }

    /// Cuts the connection of a push: ends git and ssh as `kill -9` does.
    pub fn cut(push: &mut Child) -> Result<(), Failure> {
        run(Command::new("kill").args(["-KILL", "--", &format!("-{}", push.id())]))?;
        push.wait().map(|_| ()).map_err(|error| error.to_string())
    }

    /// Pushes main and waits.
    pub fn push(&self) -> Result<Ran, Failure> {
        self.git(&["push", "--quiet", "shore", "main"])
    }

    /// Starts a push, in a process group of its own, and does not wait.
    pub fn push_in_background(&self) -> Result<Child, Failure> {
        use std::os::unix::process::CommandExt as _;
        let mut command = self.command(&["push", "shore", "main"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        command.spawn().map_err(|error| format!("git cannot be started: {error}"))
    }
}
