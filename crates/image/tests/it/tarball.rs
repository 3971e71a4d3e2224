//! Writes tar archives byte by byte, so that tests can say what no tool would write.

/// One entry; [`entry`] makes a plain one to be changed.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// PAX records beyond those that the fields above need.
    pub(crate) records: Vec<(String, Vec<u8>)>,
}

pub(crate) fn entry(kind: u8, name: impl AsRef<[u8]>) -> Item {
    Item {
        name: name.as_ref().to_vec(),
        kind,
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: (1_700_000_000, 0),
        link: Vec::new(),
        device: (0, 0),
        data: Vec::new(),
        xattrs: Vec::new(),
        records: Vec::new(),
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Item {
    Item { data: data.as_ref().to_vec(), ..entry(b'0', name) }
}

pub(crate) fn directory(name: impl AsRef<[u8]>) -> Item {
    entry(b'5', name)
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), mode: 0o777, ..entry(b'2', name) }
}

pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), ..entry(b'1', name) }
}

impl Item {
    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    pub(crate) fn time(self, seconds: i64, nanoseconds: u32) -> Self {
        Self { mtime: (seconds, nanoseconds), ..self }
    }

    pub(crate) fn device(self, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..self }
    }

    pub(crate) fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.into(), value.into()));
        self
    }

    pub(crate) fn record(mut self, key: &str, value: &[u8]) -> Self {
        self.records.push((key.into(), value.into()));
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut records = self.records.clone();
        if self.name.len() > 100 {
            records.push(("path".into(), self.name.clone()));
        }
        if self.link.len() > 100 {
            records.push(("linkpath".into(), self.link.clone()));
        }
        if self.uid > 0o777_7777 {
            records.push(("uid".into(), self.uid.to_string().into()));
        }
        if self.gid > 0o777_7777 {
            records.push(("gid".into(), self.gid.to_string().into()));
        }
        if self.mtime.1 > 0 || self.mtime.0 < 0 {
            records.push(("mtime".into(), decimal_time(self.mtime).into()));
        }
        for (name, value) in &self.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        if !records.is_empty() {
            let mut data = Vec::new();
            for (key, value) in &records {
                data.extend(pax_record(key, value));
            }
            out.extend(header(b'x', b"PaxHeader", &Self { data: data.clone(), ..self.clone() }));
            pad(out, &data);
        }
        out.extend(header(self.kind, &self.name, self));
        pad(out, &self.data);
    }
}

/// An archive of these entries, end marker included.
pub(crate) fn tarball(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        item.write(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub(crate) fn header(kind: u8, name: &[u8], item: &Item) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{:07o}", item.mode).as_bytes());
    put(108, format!("{:07o}", item.uid.min(0o777_7777)).as_bytes());
    put(116, format!("{:07o}", item.gid.min(0o777_7777)).as_bytes());
    put(124, format!("{:011o}", item.data.len()).as_bytes());
    put(136, format!("{:011o}", item.mtime.0.max(0)).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &item.link[..item.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", item.device.0).as_bytes());
    put(337, format!("{:07o}", item.device.1).as_bytes());
    seal(&mut block);
    block
}

/// Puts the right checksum into a header.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn pad(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

pub(crate) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len() + 1;
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

fn decimal_time((seconds, nanoseconds): (i64, u32)) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let (seconds, nanoseconds) = (seconds + 1, 1_000_000_000 - nanoseconds);
        return format!("-{}.{nanoseconds:09}", seconds.unsigned_abs());
    }
    format!("{seconds}.{nanoseconds:09}")
}
