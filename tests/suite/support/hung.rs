//! File systems that do not answer.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A disk that can be frozen: whoever writes then waits, and cannot be killed.
pub struct Disk {
    pub path: PathBuf,
    image: PathBuf,
    frozen: bool,
}

impl Disk {
    pub fn new(directory: &Path) -> Self {
        let (path, image) = (directory.join("disk"), directory.join("disk.img"));
        fs::create_dir(&path).unwrap();
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run("mkfs.ext4", &["-q", image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), path.to_str().unwrap()]);
        Self { path, image, frozen: false }
    }

    pub fn freeze(&mut self) {
        run("fsfreeze", &["-f", self.path.to_str().unwrap()]);
        self.frozen = true;
    }

    pub fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            run("fsfreeze", &["-u", self.path.to_str().unwrap()]);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = fs::remove_file(&self.image);
    }
}

/// A FUSE file system whose server says nothing, not even at the beginning: whoever looks into it
/// waits.
pub struct Mute {
    pub path: PathBuf,
    server: Option<OwnedFd>,
}

impl Mute {
    pub fn new(directory: &Path) -> Self {
        let path = directory.join("mute");
        fs::create_dir(&path).unwrap();
        let server: OwnedFd =
            fs::File::options().read(true).write(true).open("/dev/fuse").unwrap().into();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("mute", &path, "fuse", flags, options.as_c_str()).unwrap();
        Self { path, server: Some(server) }
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        // Whoever waits gets an error.
        self.server.take();
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
