//! Files, directories and links.

use super::*;

#[test]
fn new_files_are_written() {
    check_good(&[
        (
            "contents from a data URL",
            &[],
            r#""storage":{"files":[{"path":"/a","contents":{"source":"data:,hello%20world"}}]}"#,
            &["f 644 /a hello world"],
        ),
        (
            "base64",
            &[],
            r#""storage":{"files":[{"path":"/a","contents":{"source":"data:;base64,aGk="}}]}"#,
            &["f 644 /a hi"],
        ),
        ("no contents: an empty file", &[], r#""storage":{"files":[{"path":"/a"}]}"#, &["f 644 /a "]),
        ("an empty source", &[], r#""storage":{"files":[{"path":"/a","contents":{"source":""}}]}"#, &["f 644 /a "]),
        ("a null source", &[], r#""storage":{"files":[{"path":"/a","contents":{"source":null}}]}"#, &["f 644 /a "]),
        (
            "parents are made",
            &["d 700 /x"],
            r#""storage":{"files":[{"path":"/x/y/z/a","mode":384}]}"#,
            &["d 700 /x", "f 600 /x/y/z/a "],
        ),
        ("a mode", &[], r#""storage":{"files":[{"path":"/a","mode":256}]}"#, &["f 400 /a "]),
        ("setuid, setgid and sticky bits", &[], r#""storage":{"files":[{"path":"/a","mode":4077}]}"#, &["f 7755 /a "]),
        (
            "a verified hash",
            &[],
            r#""storage":{"files":[{"path":"/a","contents":{"source":"data:,hi","verification":
            {"hash":"sha256-8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"}}}]}"#,
            &["f 644 /a hi"],
        ),
        (
            "a directory's file after the directory, whatever the config's order",
            &[],
            r#""storage":{"files":[{"path":"/d/e/a"},{"path":"/d/b"}],
            "directories":[{"path":"/d/e","mode":448},{"path":"/d","mode":457}]}"#,
            &["d 711 /d", "f 644 /d/b ", "d 700 /d/e", "f 644 /d/e/a "],
        ),
    ]);
}

#[test]
fn files_that_are_there_give_way_as_the_config_says() {
    let with = |overwrite: &str| {
        format!(r#""storage":{{"files":[{{"path":"/a",{overwrite}"contents":{{"source":"data:,new"}}}}]}}"#)
    };
    let (yes, no, unsaid) = (with(r#""overwrite":true,"#), with(r#""overwrite":false,"#), with(""));
    check_good(&[
        ("overwrite a file", &["f 600 /a old"], &yes, &["f 644 /a new"]),
        ("overwrite a directory", &["f 600 /a/b/c old", "l /a/l /etc"], &yes, &["f 644 /a new"]),
        ("overwrite a link, not its target", &["l /a /b", "f 600 /b old"], &yes, &["f 644 /a new", "f 600 /b old"]),
        ("overwrite a link that leads nowhere", &["l /a /nowhere"], &yes, &["f 644 /a new"]),
        ("overwrite nothing", &[], &yes, &["f 644 /a new"]),
        ("the same file is there", &["f 644 /a new"], &no, &["f 644 /a new"]),
        ("the same file is there, unsaid", &["f 644 /a new"], &unsaid, &["f 644 /a new"]),
        ("one of two names is overwritten", &["f 600 /a old", "h /b /a"], &yes, &["f 644 /a new", "f 600 /b old"]),
        (
            "no contents: kept with its mode",
            &["f 4711 /a old"],
            r#""storage":{"files":[{"path":"/a"}]}"#,
            &["f 4711 /a old"],
        ),
        (
            "no contents: a mode is set",
            &["f 711 /a old"],
            r#""storage":{"files":[{"path":"/a","overwrite":false,"mode":384}]}"#,
            &["f 600 /a old"],
        ),
    ]);
    check_bad(&[
        ("another file", &["f 644 /a old"], &no, "another file is there, and overwrite is false"),
        ("another file, unsaid", &["f 644 /a old"], &unsaid, "another file is there"),
        ("a longer file", &["f 644 /a newer"], &no, "another file is there"),
        ("another mode", &["f 600 /a new"], &no, "another file is there"),
        ("a directory", &["d 755 /a"], &no, "making file /a: something that is no regular file is there"),
        ("a link", &["l /a /b", "f 644 /b new"], &no, "no regular file is there"),
        ("a directory, no contents", &["d 700 /a"], r#""storage":{"files":[{"path":"/a"}]}"#, "no regular file"),
        ("a file above", &["f 644 /x old"], r#""storage":{"files":[{"path":"/x/a"}]}"#, "/x/a"),
        ("a file two above", &["f 644 /x old"], r#""storage":{"files":[{"path":"/x/y/a"}]}"#, "/x/y/a"),
        ("the root", &[], r#""storage":{"files":[{"path":"/"}]}"#, "no regular file is there"),
        (
            "the root, overwritten",
            &[],
            r#""storage":{"files":[{"path":"/","overwrite":true,
        "contents":{"source":"data:,x"}}]}"#,
            "the root directory cannot be replaced",
        ),
        ("a mode that is none", &[], r#""storage":{"files":[{"path":"/a","mode":4096}]}"#, "4096 is no mode"),
        ("a negative mode", &[], r#""storage":{"files":[{"path":"/a","mode":-1}]}"#, "-1 is no mode"),
        (
            "a hash that does not match leaves nothing, and the old file",
            &["f 600 /a old"],
            r#""storage":{"files":[{"path":"/a","overwrite":true,"contents":{"source":"data:,hi","verification":
            {"hash":"sha256-0f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"}}}]}"#,
            "making file /a",
        ),
    ]);
}

#[test]
fn fragments_are_appended_once() {
    let two = r#""storage":{"files":[{"path":"/a","append":[{"source":"data:,1"},{"source":"data:,2"}]}]}"#;
    let after =
        r#""storage":{"files":[{"path":"/a","contents":{"source":"data:,0"},"append":[{"source":"data:,1"}]}]}"#;
    let world = World::new(&["f 600 /probe"]);
    let probe = fs::File::open(world.path("probe")).expect("there");
    marks::mark(&probe, "x");
    if !marks::is_marked(&probe, "x") {
        println!("appending twice is not tried: the file system has no user attributes");
        return;
    }
    check_good(&[
        ("to nothing", &[], two, &["f 644 /a 12"]),
        ("to a file, which keeps its mode", &["f 640 /a 0"], two, &["f 640 /a 012"]),
        ("to a file that ends so already", &["f 640 /a 012"], two, &["f 640 /a 01212"]),
        ("to contents", &[], after, &["f 644 /a 01"]),
        ("to contents that are there whole", &["f 644 /a 01"], after, &["f 644 /a 01"]),
        (
            "with a mode",
            &["f 640 /a 0"],
            r#""storage":{"files":[{"path":"/a","mode":256,"append":[{"source":"data:,1"}]}]}"#,
            &["f 400 /a 01"],
        ),
        (
            "an empty fragment",
            &["f 640 /a 0"],
            r#""storage":{"files":[{"path":"/a","append":[{"source":""}]}]}"#,
            &["f 640 /a 0"],
        ),
    ]);
    check_bad(&[
        ("to a link", &["l /a /b", "f 644 /b x"], two, "no regular file"),
        ("to a directory", &["d 755 /a"], two, "no regular file"),
        ("to contents, another file there", &["f 644 /a 0"], after, "another file is there"),
    ]);
    world.apply(&two.replace("/a", "/probe"), &none).expect("appended");
    world.apply(&two.replace("/a", "/probe").replace(",2", ",3"), &none).expect("appended");
    assert_eq!(world.dump(), ["f 600 /probe 1213"], "other fragments are appended too");
}

#[test]
fn directories_are_made_and_overwritten() {
    let overwrite = r#""storage":{"directories":[{"path":"/a","overwrite":true}]}"#;
    check_good(&[
        ("new", &[], r#""storage":{"directories":[{"path":"/a"}]}"#, &["d 755 /a"]),
        ("new with parents", &[], r#""storage":{"directories":[{"path":"/a/b","mode":448}]}"#, &["d 700 /a/b"]),
        ("sticky", &[], r#""storage":{"directories":[{"path":"/a","mode":1023}]}"#, &["d 1777 /a"]),
        ("setgid", &[], r#""storage":{"directories":[{"path":"/a","mode":1533}]}"#, &["d 2775 /a"]),
        (
            "there: kept with its mode",
            &["d 711 /a", "f 644 /a/b x"],
            r#""storage":{"directories":[{"path":"/a"}]}"#,
            &["d 711 /a", "f 644 /a/b x"],
        ),
        (
            "there: a mode is set",
            &["d 711 /a", "f 644 /a/b x"],
            r#""storage":{"directories":[{"path":"/a","mode":448,"overwrite":false}]}"#,
            &["d 700 /a", "f 644 /a/b x"],
        ),
        ("overwrite removes what is below", &["d 711 /a", "f 644 /a/b/c x", "l /a/l /etc"], overwrite, &["d 755 /a"]),
        ("overwrite a file", &["f 644 /a x"], overwrite, &["d 755 /a"]),
        ("overwrite a link", &["l /a /b", "f 644 /b/c x"], overwrite, &["d 755 /a", "f 644 /b/c x"]),
        (
            "overwrite and fill",
            &["f 644 /a/old x"],
            r#""storage":{"directories":[{"path":"/a","overwrite":true}],"files":[{"path":"/a/new"}]}"#,
            &["f 644 /a/new "],
        ),
    ]);
    check_bad(&[
        (
            "a file",
            &["f 644 /a x"],
            r#""storage":{"directories":[{"path":"/a"}]}"#,
            "making directory /a: something that is no directory is there",
        ),
        ("a link", &["l /a /etc"], r#""storage":{"directories":[{"path":"/a"}]}"#, "no directory is there"),
        ("a mode", &[], r#""storage":{"directories":[{"path":"/a","mode":8192}]}"#, "8192 is no mode"),
        (
            "overwrite the root",
            &[],
            r#""storage":{"directories":[{"path":"/","overwrite":true}]}"#,
            "the root directory cannot be replaced",
        ),
    ]);
}

#[test]
fn symbolic_links_are_made_and_overwritten() {
    let with = |overwrite: &str| format!(r#""storage":{{"links":[{{"path":"/a","target":"/b"{overwrite}}}]}}"#);
    let (yes, no) = (with(r#","overwrite":true"#), with(r#","overwrite":false"#));
    check_good(&[
        ("new", &[], &no, &["l /a /b"]),
        ("hard is false", &[], &with(r#","hard":false"#), &["l /a /b"]),
        ("relative", &[], r#""storage":{"links":[{"path":"/x/y/a","target":"../b"}]}"#, &["l /x/y/a ../b"]),
        ("the same is there", &["l /a /b"], &no, &["l /a /b"]),
        ("one that leads to the same place is there", &["l /a //b/."], &no, &["l /a //b/."]),
        ("overwrite another", &["l /a /c"], &yes, &["l /a /b"]),
        ("overwrite a file", &["f 644 /a x"], &yes, &["l /a /b"]),
        ("overwrite a directory", &["f 644 /a/c x"], &yes, &["l /a /b"]),
        ("overwrite the same", &["l /a /b"], &yes, &["l /a /b"]),
    ]);
    check_bad(&[
        ("another is there", &["l /a /c"], &no, "a link to /c is there, expected one to /b, and overwrite is false"),
        ("a file is there", &["f 644 /a x"], &no, "something that is no link is there"),
        ("a directory is there", &["d 755 /a"], &no, "something that is no link is there"),
        ("no target", &[], r#""storage":{"links":[{"path":"/a"}]}"#, "it has no target"),
        ("an empty target", &[], r#""storage":{"links":[{"path":"/a","target":""}]}"#, "it has no target"),
    ]);
}

#[test]
fn hard_links_are_made_last() {
    let with = |overwrite: &str| {
        format!(r#""storage":{{"links":[{{"path":"/a","target":"/x/y/b","hard":true{overwrite}}}]}}"#)
    };
    let (yes, no) = (with(r#","overwrite":true"#), with(""));
    check_good(&[
        ("to a file", &["f 600 /x/y/b x"], &no, &["f 600 /a x", "f 600 /x/y/b x"]),
        ("to a link, not to its target", &["l /x/y/b /etc"], &no, &["l /a /etc", "l /x/y/b /etc"]),
        (
            "through a link to a directory",
            &["f 600 /z/b x", "l /x/y /z"],
            &no,
            &["f 600 /a x", "l /x/y /z", "f 600 /z/b x"],
        ),
        ("the same is there", &["f 600 /x/y/b x", "h /a /x/y/b"], &no, &["f 600 /a x", "f 600 /x/y/b x"]),
        ("overwrite another", &["f 600 /x/y/b x", "f 644 /a z"], &yes, &["f 600 /a x", "f 600 /x/y/b x"]),
        ("overwrite the same", &["f 600 /x/y/b x", "h /a /x/y/b"], &yes, &["f 600 /a x", "f 600 /x/y/b x"]),
        ("overwrite a directory", &["f 600 /x/y/b x", "d 700 /a"], &yes, &["f 600 /a x", "f 600 /x/y/b x"]),
        (
            "to a deeper file of the same config",
            &[],
            r#""storage":{"links":[{"path":"/a","target":"/x/y/b","hard":true}],
            "files":[{"path":"/x/y/b","overwrite":true,"contents":{"source":"data:,x"}}]}"#,
            &["f 644 /a x", "f 644 /x/y/b x"],
        ),
    ]);
    let world = World::new(&["f 600 /x/y/b x"]);
    world.apply(&no, &none).expect("made");
    let inode = |path| world.path(path).metadata().expect("there").ino();
    assert_eq!(inode("a"), inode("x/y/b"));
    check_bad(&[
        ("no target there", &[], &no, "the link's target /x/y/b is not there"),
        ("another file is there", &["f 600 /x/y/b x", "f 600 /a x"], &no, "something that is not /x/y/b is there"),
        ("a directory", &["d 700 /x/y/b"], &no, "making link /a"),
    ]);
}

#[test]
fn paths_never_leave_the_root() {
    let file = r#""storage":{"files":[{"path":"/l/a","contents":{"source":"data:,x"}}]}"#;
    check_good(&[
        ("an absolute link is the root's own", &["l /l /etc"], file, &["f 644 /etc/a x", "l /l /etc"]),
        ("its target is made where missing", &["l /l /var/l"], file, &["l /l /var/l", "f 644 /var/l/a x"]),
        ("a relative link above the root", &["l /l ../../../etc"], file, &["f 644 /etc/a x", "l /l ../../../etc"]),
        (
            "links to links",
            &["l /l m/n", "l /m /o", "l /o/n ../p/./q"],
            file,
            &["l /l m/n", "l /m /o", "l /o/n ../p/./q", "f 644 /p/q/a x"],
        ),
        (
            "a relative link is relative to where it lies",
            &["l /d/l ../e"],
            r#""storage":{"directories":[{"path":"/d/l/f"}]}"#,
            &["l /d/l ../e", "d 755 /e/f"],
        ),
        (
            "the last component is not followed",
            &["l /l /etc"],
            r#""storage":{"files":[{"path":"/l","overwrite":true,"contents":{"source":"data:,x"}}]}"#,
            &["f 644 /l x"],
        ),
        (
            "what the config puts in a link's place does not lead its own files astray",
            &["l /l /m"],
            r#""storage":{"directories":[{"path":"/l","overwrite":true}],"files":[{"path":"/m/a"}]}"#,
            &["d 755 /l", "f 644 /m/a "],
        ),
    ]);
    check_bad(&[
        ("a circle", &["l /l /m", "l /m /l"], file, "resolving /l/a"),
        ("a link to a file", &["l /l /f", "f 644 /f x"], file, "/f/a"),
        (
            "two paths, one place",
            &["l /l /etc"],
            r#""storage":{"files":[{"path":"/l/a"}],"directories":[{"path":"/etc/a"}]}"#,
            "/l/a and /etc/a are the same place, /etc/a",
        ),
        (
            "a link and a file in one place",
            &["l /l /etc"],
            r#""storage":{"links":[{"path":"/l/a","target":"/b","hard":true}],"files":[{"path":"/etc/a"}]}"#,
            "are the same place",
        ),
    ]);
}

#[test]
fn nodes_belong_to_whom_the_config_says() {
    if !is_root("nodes_belong_to_whom_the_config_says") {
        return;
    }
    let passwd = ["f 644 /etc/passwd core:x:500:501::/home/core:/bin/sh\n", "f 644 /etc/group admin:x:77:\n"];
    let with = |lines: &[&'static str]| [&passwd, lines].concat();
    let all = |owner: &str| {
        format!(
            r#""storage":{{"files":[{{"path":"/f","mode":2541,{owner}}}],"directories":[{{"path":"/d",{owner}}}],
            "links":[{{"path":"/l","target":"x",{owner}}}]}}"#
        )
    };
    for (name, owner, shown) in [
        ("numbers", r#""user":{"id":7},"group":{"id":8}"#, " @7:8"),
        ("names, of the root's own files", r#""user":{"name":"core"},"group":{"name":"admin"}"#, " @500:77"),
        ("a user alone has not its group", r#""user":{"name":"core"}"#, " @500:0"),
        ("a number comes first", r#""user":{"id":7,"name":"core"}"#, " @7:0"),
        ("empty names", r#""user":{"name":""},"group":{}"#, ""),
    ] {
        let world = World::new(&passwd);
        for _ in 0..2 {
            world.apply(&all(owner), &none).expect(name);
            let expected = [format!("d 755 /d{shown}"), format!("f 4755 /f {shown}"), format!("l /l x{shown}")];
            let dump = world.dump();
            assert!(expected.iter().all(|line| dump.contains(line)), "{name}: {dump:?}");
        }
    }
    let world = World::new(&["f 4755 /f x"]);
    world.apply(r#""storage":{"files":[{"path":"/f","user":{"id":7}}]}"#, &none).expect("changed");
    assert_eq!(world.dump(), ["f 4755 /f x @7:0"], "a file that is kept keeps its mode, special bits too");
    check_bad(&[
        ("no such user", &with(&[]), &all(r#""user":{"name":"cor"}"#), "there is no user \"cor\""),
        ("no such group", &with(&[]), &all(r#""group":{"name":"core"}"#), "there is no group \"core\""),
        ("no passwd", &[], &all(r#""user":{"name":"root"}"#), "there is no user \"root\""),
        ("no number", &[], &all(r#""user":{"id":-1}"#), "-1 is no number"),
        ("the number that is none", &[], &all(r#""group":{"id":4294967295}"#), "is no number"),
    ]);
}

#[test]
fn leftovers_of_a_run_that_was_cut_off_go() {
    let world = World::new(&["f 600 /etc/.ignition-draft half"]);
    world.apply(r#""storage":{"files":[{"path":"/etc/a"}]}"#, &none).expect("written");
    assert_eq!(world.dump(), ["f 644 /etc/a "]);
}

#[test]
fn what_is_mounted_is_not_removed() {
    if !is_root("what_is_mounted_is_not_removed") {
        return;
    }
    let world = World::new(&["d 755 /a/b"]);
    let mounted = world.path("a/b");
    let options: Option<&std::ffi::CStr> = None;
    if let Err(error) = rustix::mount::mount("tmpfs", &mounted, "tmpfs", rustix::mount::MountFlags::empty(), options) {
        return println!("what_is_mounted_is_not_removed is skipped: mounting: {error}");
    }
    world.lay("f 600 /a/b/data x");
    let result = world.apply(r#""storage":{"directories":[{"path":"/a","overwrite":true}]}"#, &none);
    let kept = world.path("a/b/data").exists();
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::empty()).expect("unmounted");
    let error = result.expect_err("refused");
    assert!(kept && error.contains("a file system is mounted at b"), "{error}");
}
