//! Cases for `systemd.units`.

use super::check;

/// Units and drop-ins.
#[test]
fn units() {
    check(
        r#"{"ignition":{"version":"VERSION"},"systemd":{"units":[{CASE}]}}"#,
        r#"
vvvvvvv "name":"a.service"
vvvvvvv "name":"a.socket"
vvvvvvv "name":"a.device"
vvvvvvv "name":"a.mount"
vvvvvvv "name":"a.automount"
vvvvvvv "name":"a.swap"
vvvvvvv "name":"a.target"
vvvvvvv "name":"a.path"
vvvvvvv "name":"a.timer"
vvvvvvv "name":"a.snapshot"
vvvvvvv "name":"a.slice"
vvvvvvv "name":"a.scope"
xxxxxxx "name":"a.conf"
xxxxxxx "name":"a"
xxxxxxx "name":""
xxxxxxx "enabled":true
vvvvvvv "name":".service"
vvvvvvv "name":"x/a.service"
xxxxxxx "name":"a.service/x"
xxxxxxx "name":"a.Service"
xxxxxxx "name":5
vvvvvvv "name":"a.service","enabled":true
vvvvvvv "name":"a.service","enabled":null,"mask":true
xxxxxxx "name":"a.service","enabled":"x"
xxxxxxx "name":"a.service","mask":"x"
vvvvvvv "name":"a.service","contents":""
vvvvvvv "name":"a.service","contents":"[Unit]\nA=b"
wwwwwww "name":"a.service","contents":"[Unit]\nA=b","enabled":true
vvvvvvv "name":"a.service","contents":"[Install]\nA=b","enabled":true
wwwwwww "name":"a.service","contents":"[Install]\n","enabled":true
vvvvvvv "name":"a.service","contents":"","enabled":true
xxxxxxx "name":"a.service","contents":"[Unit"
xxxxxxx "name":"a.service","contents":"[Unit]x"
xxxxxxx "name":"a.service","contents":"[Unit]\nfoo"
xxxxxxx "name":"a.service","contents":"[Unit]\nfoo\n"
vvvvvvv "name":"a.service","contents":"foo\n"
vvvvvvv "name":"a.service","contents":"[Unit]\r\nA=b\r\n"
vvvvvvv "name":"a.service","contents":"[Unit]\n# c\\\nfoo\nA=b"
vvvvvvv "name":"a.service","contents":"[Unit]\n# c\\ \nfoo\nA=b"
xxxxxxx "name":"a.service","contents":"[Unit]\n# c\\  \nfoo\nA=b"
vvvvvvv "name":"a.service","contents":"[Unit]\nA=b\\\nfoo"
xxxxxxx "name":"a.service","contents":"[Unit]\nA=b\\ \nfoo"
vvvvvvv "name":"a.service","contents":"[Unit]\nA=b\\"
vvvvvvv "name":"a.service","contents":"[Un\nit]\nA=b"
vvvvvvv "name":"a.service","contents":"\u00a0[Unit]\u2003\n\u2003A=b"
vvvvvvv "name":"a.service","contents":"[Unit]\n=b"
vvvvvvv "name":"a.service","contents":"[Unit]\nA=<2045>"
xxxxxxx "name":"a.service","contents":"[Unit]\nA=<2046>"
xxxxxxx "name":"a.service","contents":"[Unit]\nA=<2048>\n"
xxxxxxx "name":"a.service","contents":"[Unit]\nA=<4000>\nB=c"
vvvvvvv "name":"a.service","contents":"[Unit]\nA=<2000>\nB=<2000>\nC=<2000>\nD=<2000>\n"
vvvvvvv "name":"a.service","contents":"[Unit]\nA=<2000>\nB=<2000>\nC=<3000>\nD=<2000>\n"
xxxxxxx "name":"a.service","contents":"[Unit]\nA=<2000>\nB=<2090>\nC=<2900>\nD=<2000>\nE=<2100>\n"
xxxxxxx "name":"a.service","contents":"[Unit]\nA=<5000>\n"
xxxxxxx "name":"a.service","contents":"[Unit]\n#<3000>\nA=b"
xxxxxxx "name":"a.service","contents":"<3000>[Unit]"
xxxxxxx "name":"a.service","contents":"[<3000>]\n"
vvvvvvv "name":"a.service","contents":"[Unit]\nX3000=b\n"
vvvvvvv "name":"a.service","contents":"[Unit]\nX5000=b\nX100=<1990>\nX2047=\n"
xxxxxxx "name":"a.service","contents":5
vvvvvvv "name":"a.service","dropins":[{"name":"a.conf"}]
vvvvvvv "name":"a.service","dropins":[{"name":"a.conf","contents":"[Unit]\nA=b"}]
xxxxxxx "name":"a.service","dropins":[{"name":"a.conf","contents":"[Unit"}]
xxxxxxx "name":"a.service","dropins":[{"name":"a.config"}]
xxxxxxx "name":"a.service","dropins":[{"name":"a"}]
vvvvvvv "name":"a.service","dropins":[{"name":".conf"}]
xxxxxxx "name":"a.service","dropins":[{}]
xxxxxxx "name":"a.service","dropins":[{"name":"a.conf"},{"name":"a.conf"}]
xxxxxxx "name":"a.service","dropins":[{"name":"a.conf","contents":5}]
xxxxxxx "name":"a.service","dropins":{}
xxxxxxx "name":"a.service"},{"name":"a.service"
wwwwwww "name":"a@.service","contents":"[Unit]\nA=b"},{"name":"a@b.service","enabled":true
vvvvvvv "name":"a@.service","contents":"[Install]\nA=b"},{"name":"a@b.service","enabled":true
xxxxxxx "name":"a@.service","contents":"[Install"},{"name":"a@b.service","enabled":true
vvvvvvv "name":"a@.service","contents":""},{"name":"a@b.service","enabled":true
vvvvvvv "name":"a@.service","contents":"[Unit]\nA=b"},{"name":"a@b.service","enabled":false
vvvvvvv "name":"a@.timer","contents":"[Unit]\nA=b"},{"name":"a@b.timer","enabled":true
vvvvvvv "name":"a@b.service","enabled":true
wwwwwww "name":"a.service","unknown":1
"#,
    );
}

/// Units beside files.
#[test]
fn files_of_units() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
xxxxxxx "systemd":{"units":{}}
vvvvvvv "systemd":{"units":null}
vvvvvvv "systemd":{}
xxxxxxx "systemd":[]
xxxxxxx "systemd":{"units":[{"name":"a.service","contents":"[Unit]\nA=b"}]},"storage":{"files":[{"path":"/etc/systemd/system/a.service"}]}
vvvvvvv "systemd":{"units":[{"name":"a.service","contents":""}]},"storage":{"files":[{"path":"/etc/systemd/system/a.service"}]}
vvvvvvv "systemd":{"units":[{"name":"a.service"}]},"storage":{"files":[{"path":"/etc/systemd/system/a.service"}]}
xxxxxxx "systemd":{"units":[{"name":"a.service","contents":"[Unit]\nA=b"}]},"storage":{"directories":[{"path":"/etc/systemd/system/a.service"}]}
xxxxxxx "systemd":{"units":[{"name":"a.service","contents":"[Unit]\nA=b"}]},"storage":{"links":[{"path":"/etc/systemd/system/a.service","target":"x"}]}
xxxxxxx "systemd":{"units":[{"name":"a.service","dropins":[{"name":"b.conf","contents":"[A]"}]}]},"storage":{"files":[{"path":"/etc/systemd/system/a.service.d/b.conf"}]}
vvvvvvv "systemd":{"units":[{"name":"a.service","dropins":[{"name":"b.conf"}]}]},"storage":{"files":[{"path":"/etc/systemd/system/a.service.d/b.conf"}]}
vvvvvvv "systemd":{"units":[{"name":"a.service","contents":"[A]"}]},"storage":{"files":[{"path":"/usr/lib/systemd/system/a.service"}]}
"#,
    );
}
