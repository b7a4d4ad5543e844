//! Users and groups: with programs that record their arguments, and as root with the real ones.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Mutex;

use super::*;

/// Stands for the shadow suite: records what is run, and does the little that the stage relies on.
struct Suite<'a> {
    world: &'a World,
    ran: Mutex<Vec<String>>,
}

impl<'a> Suite<'a> {
    fn new(world: &'a World) -> Self {
        Self { world, ran: Mutex::default() }
    }

    /// What was run since it was last asked, without the root.
    fn take(&self) -> Vec<String> {
        let root = format!(" --root {}", self.world.directory.path().display());
        std::mem::take(&mut *self.ran.lock().expect("whole")).iter().map(|line| line.replace(&root, "")).collect()
    }

    fn edit(&self, path: &str, edit: impl FnOnce(Vec<String>) -> Vec<String>) {
        let path = self.world.path(path);
        let lines = fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
        fs::write(path, edit(lines).join("\n") + "\n").expect("written");
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Output, CommandError> {
        let shown = [&[program], arguments].concat().join(" ");
        self.ran.lock().expect("whole").push(shown.clone());
        let value = |flag| arguments.iter().position(|&word| word == flag).map(|at| arguments[at + 1]);
        let name = arguments.last().expect("a name");
        let own = geteuid().as_raw().to_string();
        let add = |path, line: String| self.edit(path, |lines| [lines, vec![line]].concat());
        let remove = |path| {
            self.edit(path, |mut lines| {
                lines.retain(|line| !line.starts_with(&format!("{name}:")));
                lines
            });
        };
        match program {
            "useradd" => {
                let home = value("--home-dir").map_or(format!("/home/{name}"), str::to_owned);
                add("etc/passwd", format!("{name}:x:{}:{own}::{home}:/bin/sh", value("--uid").unwrap_or(&own)));
                add("etc/shadow", format!("{name}:{}:17331:0:99999:7:::", value("--password").unwrap_or("!")));
                if arguments.contains(&"--create-home") {
                    fs::create_dir_all(self.world.path(&home)).expect("home");
                }
            }
            "usermod" => {
                if let Some(hash) = value("--password") {
                    remove("etc/shadow");
                    add("etc/shadow", format!("{name}:{hash}:20000:0:99999:7:::"));
                }
            }
            "groupadd" => {
                add("etc/group", format!("{name}:x:{}:", value("--gid").unwrap_or("1000")));
                add("etc/gshadow", format!("{name}:{}::", value("--password").unwrap_or("!")));
            }
            "groupmod" => {
                if let Some(gid) = value("--gid") {
                    remove("etc/group");
                    add("etc/group", format!("{name}:x:{gid}:"));
                }
            }
            "userdel" => ["etc/passwd", "etc/shadow"].into_iter().for_each(remove),
            "groupdel" => ["etc/group", "etc/gshadow"].into_iter().for_each(remove),
            _ => return Err(failure(shown)),
        }
        Ok(success(b""))
    }
}

/// A program that ended well.
pub(super) fn success(stdout: &[u8]) -> Output {
    Output { status: ExitStatus::default(), stdout: stdout.to_vec(), stderr: Vec::new() }
}

/// A program that ended with code 1.
pub(super) fn failure(command: String) -> CommandError {
    let run = std::process::Command::new("false").output().expect("false");
    assert_eq!(run.status, ExitStatus::from_raw(0x100));
    crate::command::run("false", &[], &[], |code| code == 0).map_or_else(|error| error, |_| panic!("{command}"))
}

/// What is there before the cases, with somebody in it.
fn world() -> World {
    World::new(&[
        "f 644 /etc/passwd root:x:0:0:root:/root:/bin/bash\ncore:x:500:500:Core:/home/core:/bin/bash\n",
        "f 640 /etc/shadow root:*:15887:0:::::\ncore:$old$:15887:0:::::\n",
        "f 644 /etc/group root:x:0:\ncore:x:500:\n",
        "f 640 /etc/gshadow root:*::\ncore:!::\n",
    ])
}

/// The line of a name in a file of the world.
fn line(world: &World, path: &str, name: &str) -> String {
    let text = fs::read_to_string(world.path(path)).expect(path);
    text.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default().to_owned()
}

#[test]
fn every_field_of_a_user_is_an_argument() {
    let cases = [
        ("new", r#""name":"a""#, vec!["useradd --create-home --password * a"]),
        (
            "new with all",
            r#""name":"a","uid":1234,"gecos":"A B","homeDir":"/srv/a","noCreateHome":true,"primaryGroup":"users",
            "groups":["wheel","disk"],"noUserGroup":true,"system":true,"noLogInit":true,"shell":"/bin/zsh",
            "shouldExist":true,"passwordHash":"$y$secret""#,
            vec![
                "useradd --home-dir /srv/a --no-create-home --no-user-group --system --no-log-init --password * \
                 --uid 1234 --comment A B --gid users --groups wheel,disk --shell /bin/zsh a",
            ],
        ),
        (
            "new with nothing said",
            r#""name":"a","gecos":"","homeDir":"","noCreateHome":false,"primaryGroup":"","groups":[],
            "noUserGroup":false,"system":false,"noLogInit":false,"shell":"","sshAuthorizedKeys":[]"#,
            vec!["useradd --create-home --password * a"],
        ),
        ("there, nothing to change", r#""name":"core""#, vec![]),
        (
            "there, all changed; what is for new users alone is left out",
            r#""name":"core","uid":1234,"gecos":"A B","homeDir":"/srv/a","noCreateHome":true,"primaryGroup":"users",
            "groups":["wheel","disk"],"noUserGroup":true,"system":true,"noLogInit":true,"shell":"/bin/zsh",
            "passwordHash":"$y$secret""#,
            vec![
                "usermod --home /srv/a --move-home --password * --uid 1234 --comment A B --gid users \
                 --groups wheel,disk --shell /bin/zsh core",
            ],
        ),
        ("there, the hash is there too", r#""name":"core","passwordHash":"$old$""#, vec![]),
        ("gone", r#""name":"core","shouldExist":false"#, vec!["userdel --remove core"]),
        ("gone already", r#""name":"a","shouldExist":false"#, vec![]),
    ];
    for (name, user, expected) in cases {
        let world = world();
        let suite = Suite::new(&world);
        let config = format!(r#""passwd":{{"users":[{{{user}}}]}}"#);
        world.apply(&config, &|program, arguments| suite.run(program, arguments)).expect(name);
        assert_eq!(suite.take(), expected, "{name}");
    }
}

#[test]
fn a_user_who_had_a_home_gets_its_number_again() {
    if !is_root("a_user_who_had_a_home_gets_its_number_again") {
        return;
    }
    let cases = [
        ("a home of before", 1500, "/home/a", r#""name":"a""#, Some(1500)),
        ("another home", 1500, "/srv/a", r#""name":"a","homeDir":"/srv/a""#, Some(1500)),
        ("a number is given", 1500, "/home/a", r#""name":"a","uid":1234"#, Some(1234)),
        ("it is root's", 0, "/home/a", r#""name":"a""#, None),
        ("it is another's", 500, "/home/a", r#""name":"a""#, None),
        ("it is another home", 1500, "/home/b", r#""name":"a""#, None),
    ];
    for (name, owner, home, user, expected) in cases {
        let world = world();
        fs::create_dir_all(world.path(home)).expect("home");
        std::os::unix::fs::chown(world.path(home), Some(owner), Some(owner)).expect("chown");
        let suite = Suite::new(&world);
        let config = format!(r#""passwd":{{"users":[{{{user}}}]}}"#);
        world.apply(&config, &|program, arguments| suite.run(program, arguments)).expect(name);
        let ran = suite.take();
        let [line] = &ran[..] else { panic!("{name}: {ran:?}") };
        let uid = line.split_once("--uid ").map(|(_, rest)| rest.split(' ').next().unwrap_or_default().to_owned());
        assert_eq!(uid, expected.map(|uid| uid.to_string()), "{name}: {line}");
    }
}

#[test]
fn every_field_of_a_group_is_an_argument() {
    let cases = [
        ("new", r#""name":"a""#, vec!["groupadd a"]),
        ("new, an empty hash", r#""name":"a","passwordHash":"""#, vec!["groupadd a"]),
        (
            "new with all",
            r#""name":"a","gid":77,"passwordHash":"$y$secret","system":true,"shouldExist":true"#,
            vec!["groupadd --gid 77 --password * --system a"],
        ),
        ("there", r#""name":"core""#, vec![]),
        ("there with another number", r#""name":"core","gid":77,"system":true"#, vec!["groupmod --gid 77 core"]),
        ("there with another hash", r#""name":"core","passwordHash":"$y$""#, vec!["groupmod --password * core"]),
        ("there with that number", r#""name":"core","gid":500,"system":true"#, vec![]),
        ("gone", r#""name":"core","shouldExist":false"#, vec!["groupdel core"]),
        ("gone already", r#""name":"a","shouldExist":false"#, vec![]),
    ];
    for (name, group, expected) in cases {
        let world = world();
        let suite = Suite::new(&world);
        let config = format!(r#""passwd":{{"groups":[{{{group}}}]}}"#);
        for (time, expected) in [("first", expected), ("second", vec![])] {
            world.apply(&config, &|program, arguments| suite.run(program, arguments)).expect(name);
            assert_eq!(suite.take(), expected, "{name}, {time} time");
        }
    }
}

#[test]
fn hashes_are_in_their_files_and_in_no_argument() {
    let config = r#""passwd":{"groups":[{"name":"g","passwordHash":"$g$"},{"name":"core","passwordHash":"$c$"}],
        "users":[{"name":"a","passwordHash":"$a$"},{"name":"none","passwordHash":""},{"name":"unsaid"},
        {"name":"core","passwordHash":"$new$"}]}"#;
    let world = world();
    let suite = Suite::new(&world);
    let expected = [
        ("etc/shadow", "a", "a:$a$:17331:0:99999:7:::"),
        ("etc/shadow", "none", "none:*:17331:0:99999:7:::"),
        ("etc/shadow", "unsaid", "unsaid:*:17331:0:99999:7:::"),
        // The date is of the program's making.
        ("etc/shadow", "core", "core:$new$:20000:0:99999:7:::"),
        ("etc/shadow", "root", "root:*:15887:0:::::"),
        ("etc/gshadow", "g", "g:$g$::"),
        ("etc/gshadow", "core", "core:$c$::"),
        ("etc/group", "g", "g:x:1000:"),
    ];
    for time in ["first", "second"] {
        world.apply(config, &|program, arguments| suite.run(program, arguments)).expect(time);
        let ran = suite.take();
        assert_eq!(ran.len(), if time == "first" { 6 } else { 0 }, "{ran:?}");
        assert!(!ran.iter().any(|line| line.contains('$')), "{ran:?}");
        for (path, name, expected) in expected {
            assert_eq!(line(&world, path, name), expected, "{path}, {time} time");
        }
        assert_eq!(world.path("etc/shadow").metadata().expect("there").mode() & 0o777, 0o640);
    }
    let alone = World::new(&["f 644 /etc/passwd old:x:1:1::/:/bin/sh", "f 644 /etc/group "]);
    let config = r#""passwd":{"users":[{"name":"old","passwordHash":"$p$"}]}"#;
    let error = alone.apply(config, &|_, _| Ok(success(b""))).err();
    assert_eq!((error, line(&alone, "etc/passwd", "old").as_str()), (None, "old:$p$:1:1::/:/bin/sh"), "without shadow");
}

#[test]
fn accounts_that_cannot_be_are_errors() {
    let cases = [
        ("a name that is an option", r#""users":[{"name":"-D"}]"#, "no name of an account"),
        ("a group that is an option", r#""groups":[{"name":"--help"}]"#, "no name of an account"),
        ("no name", r#""users":[{"name":""}]"#, "no name of an account"),
        ("a hash that is two fields", r#""users":[{"name":"core","passwordHash":"SECRET:0"}]"#, "holds a colon"),
        ("a hash that is two lines", r#""users":[{"name":"core","passwordHash":"SECRET\nx"}]"#, "a line end"),
    ];
    for (name, passwd, message) in cases {
        let world = world();
        let suite = Suite::new(&world);
        let config = format!(r#""passwd":{{{passwd}}}"#);
        let error = world.apply(&config, &|program, arguments| suite.run(program, arguments)).expect_err(name);
        assert!(error.contains(message) && !error.contains("SECRET"), "{name}: {error}");
    }
    let error = world().apply(r#""passwd":{"users":[{"name":"a"}]}"#, &|_, _| Err(failure("false".into())));
    assert!(error.expect_err("fails").contains("user \"a\": false ended with exit status: 1"));
}

#[test]
fn locks_of_a_run_that_was_cut_off_go() {
    let left = ["f 600 /etc/group+ x", "f 600 /etc/group.123 123\0", "f 600 /etc/gshadow.lock 1\0"];
    let kept = ["f 600 /etc/group.7 text", "f 600 /etc/groups.lock x", "f 600 /etc/passwd- x"];
    let config = r#""passwd":{"users":[{"name":"core"}]}"#;
    for guard in [None, Some("f 600 /etc/.pwd.lock ")] {
        let world = world();
        left.iter().chain(&kept).chain(&guard).for_each(|line| world.lay(line));
        world.apply(config, &none).expect("nothing to change");
        let dump = world.dump();
        assert!(kept.iter().all(|line| dump.contains(&(*line).to_owned())), "{dump:?}");
        assert!(!left.iter().any(|line| dump.contains(&(*line).to_owned())), "{dump:?}");
    }
}

#[test]
fn accounts_that_a_cut_left_half_made_are_made_anew() {
    let config = r#""passwd":{"groups":[{"name":"g"}],"users":[{"name":"a"},{"name":"b","homeDir":"/srv/b"}]}"#;
    let world = world();
    let suite = Suite::new(&world);
    world.lay("f 600 /srv/b/kept x");
    // The second useradd is cut off when it has written the account.
    let cut = |program: &str, arguments: &[&str]| {
        let result = suite.run(program, arguments);
        if program == "useradd" && arguments.last() == Some(&"b") { Err(failure("useradd".into())) } else { result }
    };
    world.apply(config, &cut).expect_err("cut off");
    let noted = fs::read_to_string(world.path("etc/.ignition-accounts")).expect("noted");
    assert_eq!(noted, "group g\ngroup a\nhome /home/a\nuser a\ngroup b\nuser b\n");
    suite.take();
    world.lay("f 600 /home/a/half x");
    world.apply(config, &|program, arguments| suite.run(program, arguments)).expect("made anew");
    let ran: Vec<String> = suite.take().iter().map(|line| line.split(' ').next().unwrap_or_default().into()).collect();
    assert_eq!(ran, ["userdel", "userdel", "groupdel", "groupadd", "useradd", "useradd"]);
    assert!(!world.path("etc/.ignition-accounts").exists(), "nothing stays noted");
    assert!(!world.path("home/a/half").exists(), "a home that was being made is made anew");
    assert!(world.path("srv/b/kept").exists(), "a home that was there is not touched");
}

#[test]
fn ssh_keys_are_written_where_the_environment_says() {
    let config = r#""passwd":{"users":[{"name":"a","sshAuthorizedKeys":["ssh-ed25519 A a","ssh-rsa B"]}]}"#;
    for (destination, path, directories) in [
        (Destination::Fragment, "/home/a/.ssh/authorized_keys.d/ignition", 2),
        (Destination::Whole, "/home/a/.ssh/authorized_keys", 1),
    ] {
        let mut world = World::new(&["f 644 /etc/passwd ", "f 644 /etc/group ", "f 600 /etc/shadow "]);
        world.keys = destination;
        let suite = Suite::new(&world);
        for time in ["first", "second"] {
            world.apply(config, &|program, arguments| suite.run(program, arguments)).expect(time);
            let dump = world.dump();
            assert!(dump.contains(&format!("f 600 {path} ssh-ed25519 A a\nssh-rsa B\n")), "{dump:?}");
            let made = dump.iter().filter(|line| line.starts_with("d 700 /home/a/.ssh")).count();
            assert_eq!(made, directories, "{dump:?}");
        }
        let fewer = config.replace(r#","ssh-rsa B""#, "");
        world.apply(&fewer, &|program, arguments| suite.run(program, arguments)).expect("written");
        assert_eq!(fs::read_to_string(world.path(path)).expect("there"), "ssh-ed25519 A a\n", "keys that are gone go");
    }
}

#[test]
fn ssh_keys_are_written_as_their_user() {
    if !is_root("ssh_keys_are_written_as_their_user") {
        return;
    }
    let config = r#""passwd":{"users":[{"name":"a","sshAuthorizedKeys":["K"]}]}"#;
    let path = ".ssh/authorized_keys.d/ignition";
    let world = || {
        let world = World::new(&["f 644 /etc/passwd a:x:500:501::/home/a:/bin/sh", "d 700 /home/a", "d 755 /srv"]);
        std::os::unix::fs::chown(world.path("home/a"), Some(500), Some(501)).expect("chown");
        world
    };
    let plain = world();
    plain.apply(config, &none).expect("written");
    let expected = [
        "d 700 /home/a/.ssh @500:501".to_owned(),
        "d 700 /home/a/.ssh/authorized_keys.d @500:501".to_owned(),
        format!("f 600 /home/a/{path} K\n @500:501"),
    ];
    assert_eq!(plain.dump()[2..5], expected);

    let linked = world();
    linked.lay("l /home/a/.ssh /srv");
    let error = linked.apply(config, &none).expect_err("a directory of root's");
    assert!(error.contains("writing its SSH keys") && error.contains("Permission denied"), "{error}");
    assert_eq!(fs::read_dir(linked.path("srv")).expect("there").count(), 0);

    let file = world();
    file.lay("f 600 /etc/target secret");
    file.lay(&format!("l /home/a/{path} /etc/target"));
    fs::set_permissions(file.path("home/a"), fs::Permissions::from_mode(0o755)).expect("chmod");
    for below in ["home/a/.ssh", "home/a/.ssh/authorized_keys.d"] {
        std::os::unix::fs::chown(file.path(below), Some(500), Some(501)).expect("chown");
    }
    file.apply(config, &none).expect("the link itself is replaced");
    assert_eq!(fs::read_to_string(file.path("etc/target")).expect("there"), "secret");

    let foreign = World::new(&["f 644 /etc/passwd a:x:500:501::/home/a:/bin/sh", "d 755 /home/a"]);
    let error = foreign.apply(config, &none).expect_err("a home of root's");
    assert!(error.contains("Permission denied"), "{error}");
}

#[test]
fn directories_made_for_mounts_in_a_home_become_its_users() {
    if !is_root("directories_made_for_mounts_in_a_home_become_its_users") {
        return;
    }
    let before = ["f 644 /etc/passwd a:x:500:501::/home/a:/bin/sh", "d 755 /home/a/data", "d 755 /home/ab"];
    let made = ["/home", "/home/a", "/home/a/data", "/home/ab", "/home/a/gone"];
    for (user, expected) in [
        (r#""name":"a""#, vec!["d 700 /home/a @500:501", "d 700 /home/a/data @500:501", "d 755 /home/ab"]),
        (r#""name":"a","noCreateHome":true"#, vec!["d 755 /home/a/data", "d 755 /home/ab"]),
    ] {
        let mut world = World::new(&before);
        world.state.made_directories = made.map(PathBuf::from).to_vec();
        world.apply(&format!(r#""passwd":{{"users":[{{{user}}}]}}"#), &none).expect(user);
        assert_eq!(world.dump()[1..], expected, "{user}");
    }
}

#[test]
fn the_real_programs_do_what_is_asked() {
    if !is_root("the_real_programs_do_what_is_asked") {
        return;
    }
    let run = |program: &str, arguments: &[&str]| crate::command::run(program, arguments, &[], |code| code == 0);
    for program in ["useradd", "usermod", "userdel", "groupadd", "groupmod", "groupdel"] {
        if let Err(CommandError::Start { .. }) = run(program, &["--help"]) {
            return println!("the_real_programs_do_what_is_asked is skipped: {program} is not there");
        }
    }
    let world = world();
    world.lay("f 644 /etc/skel/.profile # skel\n");
    world.lay("d 755 /home");
    let config = r#""passwd":{"groups":[{"name":"g","gid":1234,"passwordHash":"$6$g"},{"name":"h"},
        {"name":"core","gid":501,"passwordHash":"$6$k"}],
        "users":[{"name":"a","uid":1235,"gecos":"A B","primaryGroup":"g","groups":["h"],"shell":"/bin/zsh",
        "passwordHash":"$6$a","sshAuthorizedKeys":["K"]},{"name":"core","gecos":"C D","passwordHash":"$6$c"}]}"#;
    for time in ["first", "second"] {
        world.apply(config, &run).unwrap_or_else(|error| panic!("{time}: {error}"));
        assert_eq!(line(&world, "etc/passwd", "a"), "a:x:1235:1234:A B:/home/a:/bin/zsh", "{time}");
        assert_eq!(line(&world, "etc/passwd", "core"), "core:x:500:501:C D:/home/core:/bin/bash", "{time}");
        assert!(line(&world, "etc/shadow", "a").starts_with("a:$6$a:"), "{time}");
        assert!(line(&world, "etc/shadow", "core").starts_with("core:$6$c:"), "{time}");
        assert!(!line(&world, "etc/shadow", "core").contains("15887"), "the date of the change is written");
        assert_eq!(line(&world, "etc/group", "core"), "core:x:501:", "{time}");
        assert_eq!(line(&world, "etc/gshadow", "core"), "core:$6$k::", "{time}");
        assert_eq!(line(&world, "etc/gshadow", "g"), "g:$6$g::", "{time}");
        assert!(line(&world, "etc/group", "h").ends_with(":a"), "{time}");
        assert!(world.dump().contains(&"f 644 /home/a/.profile # skel\n @1235:1234".to_owned()), "{:?}", world.dump());
        let keys = "f 600 /home/a/.ssh/authorized_keys.d/ignition K\n @1235:1234".to_owned();
        assert!(world.dump().contains(&keys), "{:?}", world.dump());
    }
    let gone = r#""passwd":{"users":[{"name":"a","shouldExist":false}],"groups":[{"name":"h","shouldExist":false}]}"#;
    world.apply(gone, &run).expect("removed");
    assert_eq!((line(&world, "etc/passwd", "a"), line(&world, "etc/group", "h")), (String::new(), String::new()));
    assert!(!world.path("home/a").exists());
}
