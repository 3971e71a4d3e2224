//! Users and groups as the guest's own `/etc/passwd` and `/etc/group` tell them, read as bytes.
//!
//! Name services (LDAP, sssd) are not asked: a static program cannot load them, and an image is
//! expected to bring its users with it.

use std::fs;
use std::path::Path;

use nix::unistd::Gid;

/// User of a command whose sandbox names none.
pub(crate) const DEFAULT_USER: &str = "root";

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub identity: Identity,
    /// Login name; none for a number without an entry.
    pub name: Option<Vec<u8>>,
    /// Home directory, `/` without an entry.
    pub home: Vec<u8>,
    /// Login shell, `/bin/sh` without an entry.
    pub shell: Vec<u8>,
}

/// User and groups of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
}

impl User {
    /// Root, whatever files say.
    pub(crate) fn root() -> Self {
        Self::without_entry(0)
    }

    fn without_entry(uid: u32) -> Self {
        Self {
            identity: Identity { uid, gid: 0, groups: Vec::new() },
            name: None,
            home: b"/".to_vec(),
            shell: b"/bin/sh".to_vec(),
        }
    }
}

/// The user or group that a request names is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoSuchUser;

/// Both files as they are now.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

impl Accounts {
    /// Reads `etc/passwd` and `etc/group`; a missing one is empty.
    pub(crate) fn read(etc: &Path) -> Self {
        let read = |name| fs::read(etc.join(name)).unwrap_or_default();
        Self { passwd: read("passwd"), group: read("group") }
    }

    /// Finds `name`, `uid`, `name:group` or `uid:gid`, in any mixture.
    ///
    /// A name is looked for before a number is taken as one, as Docker does. With a group given there
    /// are no supplementary groups; without one they are all groups that list the user.
    pub(crate) fn find(&self, spec: &str) -> Result<User, NoSuchUser> {
        let (user, group) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (spec, None),
        };
        let mut found = self.user(user)?;
        match group {
            Some(group) => found.identity.gid = self.group(group)?,
            None => found.identity.groups = self.supplementary(found.name.as_deref()),
        }
        Ok(found)
    }

    /// As [`Accounts::find`]; an image without any accounts still has a root.
    pub(crate) fn find_or_root(&self, spec: &str) -> Result<User, NoSuchUser> {
        self.find(spec).or_else(|missing| match spec {
            DEFAULT_USER => self.find("0"),
            _ => Err(missing),
        })
    }

    fn user(&self, user: &str) -> Result<User, NoSuchUser> {
        let named = || self.passwd().find(|entry| entry.name == user.as_bytes());
        let numbered = |uid| self.passwd().find(|entry| entry.uid == uid);
        let number = id(user.as_bytes());
        match (named().or_else(|| number.and_then(numbered)), number) {
            (Some(entry), _) => Ok(entry.to_user()),
            (None, Some(uid)) => Ok(User::without_entry(uid)),
            (None, None) => Err(NoSuchUser),
        }
    }

    fn group(&self, group: &str) -> Result<u32, NoSuchUser> {
        let named = self.groups().find(|entry| entry.name == group.as_bytes());
        named.map(|entry| entry.gid).or_else(|| id(group.as_bytes())).ok_or(NoSuchUser)
    }

    fn supplementary(&self, name: Option<&[u8]>) -> Vec<Gid> {
        let Some(name) = name else { return Vec::new() };
        let lists =
            |entry: &Group<'_>| entry.members.split(|byte| *byte == b',').any(|m| m == name);
        self.groups().filter(lists).map(|entry| Gid::from_raw(entry.gid)).collect()
    }

    fn passwd(&self) -> impl Iterator<Item = Passwd<'_>> {
        self.passwd.split(|byte| *byte == b'\n').filter_map(Passwd::parse)
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.split(|byte| *byte == b'\n').filter_map(Group::parse)
    }
}

/// `name:password:uid:gid:comment:home:shell` (passwd(5)).
struct Passwd<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
    shell: &'a [u8],
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let _comment = fields.next();
        let home = fields.next().filter(|home| !home.is_empty()).unwrap_or(b"/");
        let shell = fields.next().filter(|shell| !shell.is_empty()).unwrap_or(b"/bin/sh");
        Some(Self { name, uid, gid, home, shell })
    }

    fn to_user(&self) -> User {
        User {
            identity: Identity { uid: self.uid, gid: self.gid, groups: Vec::new() },
            name: Some(self.name.to_vec()),
            home: self.home.to_vec(),
            shell: self.shell.to_vec(),
        }
    }
}

/// `name:password:gid:member,member` (group(5)).
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }
}

/// A user or group number. `u32::MAX` means "leave as it is" to the kernel and is no id.
fn id(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number = str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()?;
    (number != u32::MAX).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: b"root:x:0:0:root:/root:/bin/bash\n\
                # no entry\n\
                broken:x:one:1::/:/bin/sh\n\
                app:x:1000:1001:App,,,:/home/app:/bin/zsh\n\
                bare:x:7:8:::\n\
                caf\xe9:x:1100:1100::/home/caf\xe9:/bin/sh\n\
                42:x:4242:4242::/home/42:/bin/sh\n"
                .to_vec(),
            group: b"root:x:0:\n\
                staff:x:50:app,other\n\
                docker:x:999:app\n\
                apps:x:60:application,myapp\n\
                app:x:1001:\n"
                .to_vec(),
        }
    }

    fn check(spec: &str, ids: (u32, u32), groups: &[u32], entry: Option<[&str; 3]>) {
        let [home, shell] = entry.map_or(["/", "/bin/sh"], |[_, home, shell]| [home, shell]);
        let expect = User {
            identity: Identity {
                uid: ids.0,
                gid: ids.1,
                groups: groups.iter().copied().map(Gid::from_raw).collect(),
            },
            name: entry.map(|[name, ..]| name.into()),
            home: home.into(),
            shell: shell.into(),
        };
        assert_eq!(accounts().find(spec), Ok(expect), "{spec:?}");
    }

    #[test]
    fn users_are_found_by_name_number_and_group() {
        let root = Some(["root", "/root", "/bin/bash"]);
        let app = Some(["app", "/home/app", "/bin/zsh"]);
        check("root", (0, 0), &[], root);
        check("0", (0, 0), &[], root);
        check("app", (1000, 1001), &[50, 999], app);
        check("1000", (1000, 1001), &[50, 999], app);
        check("app:docker", (1000, 999), &[], app);
        check("app:5", (1000, 5), &[], app);
        check("5000", (5000, 0), &[], None);
        check("5000:staff", (5000, 50), &[], None);
        check("bare", (7, 8), &[], Some(["bare", "/", "/bin/sh"]));
        check("42", (4242, 4242), &[], Some(["42", "/home/42", "/bin/sh"]));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for spec in ["", ":", "nobody", "broken", "app:nogroup", "app:", "-1", "4294967295", "+5"] {
            assert_eq!(accounts().find(spec), Err(NoSuchUser), "{spec:?}");
        }
    }

    #[test]
    fn names_need_not_be_utf8() {
        let user = accounts().find("1100").unwrap();
        assert_eq!(user.name.as_deref(), Some(&b"caf\xe9"[..]));
        assert_eq!(user.home, b"/home/caf\xe9");
    }
}
