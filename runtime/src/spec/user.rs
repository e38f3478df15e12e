//! Who the first process is: numbers, or names that only the image's own files explain.

use super::refuse;
use crate::pod::spec::RunAs;
use crate::pod::{Result, User};

/// The image's /etc/passwd and /etc/group; empty where it has none.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// /etc/passwd.
    pub passwd: String,
    /// /etc/group.
    pub group: String,
}

struct Person<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Names {
    fn people(&self) -> impl Iterator<Item = Person<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Person { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
        })
    }

    /// Name, number and members of each group.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }

    /// The home directory of a user; None when the image names none.
    pub(super) fn home(&self, uid: u32) -> Option<String> {
        let person = self.people().find(|p| p.uid == uid)?;
        (!person.home.is_empty()).then(|| person.home.to_owned())
    }
}

/// Resolves the request's user, else the image's, with its groups.
pub(super) fn resolve(asked: &RunAs, image_user: &str, names: &Names) -> Result<User> {
    let (text, field) = match (asked.user, &asked.username) {
        (Some(uid), _) => (uid.to_string(), "linux.security_context.run_as_user"),
        (None, Some(name)) if !name.is_empty() => {
            (name.clone(), "linux.security_context.run_as_username")
        }
        _ => (image_user.to_owned(), "image.config.User"),
    };
    let (who, group) = text.split_once(':').unwrap_or((&text, ""));
    let (name, uid, of_user) = person(who, names, field)?;
    let gid = match (asked.group, group) {
        (Some(gid), _) => gid,
        (None, "") => of_user,
        (None, group) => group_id(group, names, field)?,
    };
    let mut groups = vec![gid];
    if !asked.strict_groups
        && let Some(name) = name
    {
        let member = |list: &str| list.split(',').any(|m| m.trim() == name);
        groups.extend(names.groups().filter(|(_, _, list)| member(list)).map(|(_, gid, _)| gid));
    }
    groups.extend(&asked.supplemental_groups);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    Ok(User { uid, gid, groups })
}

/// Name (where the image has one), number and primary group of a user.
fn person(who: &str, names: &Names, field: &str) -> Result<(Option<String>, u32, u32)> {
    let found = match (who, who.parse::<u32>()) {
        ("", _) => names.people().find(|p| p.uid == 0),
        (_, Ok(uid)) => names.people().find(|p| p.uid == uid),
        (name, Err(_)) => names.people().find(|p| p.name == name),
    };
    match (found, who, who.parse::<u32>()) {
        (Some(person), _, _) => Ok((Some(person.name.to_owned()), person.uid, person.gid)),
        (None, "", _) => Ok((None, 0, 0)),
        (None, _, Ok(uid)) => Ok((None, uid, 0)),
        (None, name, Err(_)) => {
            Err(refuse(field, name, "the image's /etc/passwd has no such user"))
        }
    }
}

fn group_id(group: &str, names: &Names, field: &str) -> Result<u32> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let found = names.groups().find(|(name, _, _)| *name == group).map(|(_, gid, _)| gid);
    found.ok_or_else(|| refuse(field, group, "the image's /etc/group has no such group"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            passwd: "root:x:0:0:root:/root:/bin/sh\n\
                     # a comment\n\
                     app:x:1000:1001:App:/home/app:/bin/sh\n\
                     torn:x\n"
                .into(),
            group: "root:x:0:\nwheel:x:10:app,root\naudio:x:29: app\nstaff:x:50:\n".into(),
        }
    }

    fn user(asked: &RunAs, image: &str) -> (u32, u32, Vec<u32>) {
        let user = resolve(asked, image, &names()).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn the_image_knows_its_own_users() {
        let ask = RunAs::default();
        let cases = [
            ("", (0, 0, vec![0, 10])),
            ("app", (1000, 1001, vec![1001, 10, 29])),
            ("1000", (1000, 1001, vec![1001, 10, 29])),
            ("app:staff", (1000, 50, vec![50, 10, 29])),
            ("app:77", (1000, 77, vec![77, 10, 29])),
            ("4242", (4242, 0, vec![0])),
            ("4242:7", (4242, 7, vec![7])),
        ];
        for (image, expected) in cases {
            assert_eq!(user(&ask, image), expected, "{image:?}");
        }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let by_number = RunAs { user: Some(1000), group: Some(5), ..RunAs::default() };
        assert_eq!(user(&by_number, "root"), (1000, 5, vec![5, 10, 29]));
        let by_name = RunAs { username: Some("app".into()), ..RunAs::default() };
        assert_eq!(user(&by_name, "root"), (1000, 1001, vec![1001, 10, 29]));
        let strict = RunAs {
            user: Some(1000),
            supplemental_groups: vec![99, 1001, 99],
            strict_groups: true,
            ..RunAs::default()
        };
        assert_eq!(user(&strict, ""), (1000, 1001, vec![1001, 99]));
        let merged = RunAs { supplemental_groups: vec![99, 10], ..strict.clone() };
        let merged = RunAs { strict_groups: false, ..merged };
        assert_eq!(user(&merged, ""), (1000, 1001, vec![1001, 10, 29, 99]));
    }

    #[test]
    fn an_unknown_name_is_refused() {
        for image in ["nobody", "app:nogroup"] {
            assert!(resolve(&RunAs::default(), image, &names()).is_err(), "{image}");
        }
        let none = Names::default();
        assert!(resolve(&RunAs::default(), "app", &none).is_err());
        assert_eq!(resolve(&RunAs::default(), "", &none).unwrap().uid, 0);
    }
}
