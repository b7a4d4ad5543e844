//! Cases for `storage.disks`, `raid` and `filesystems`.

use super::check;

/// Disks.
#[test]
fn disks() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
vvvvvvv "storage":{"disks":[{"device":"/dev/a","wipeTable":true}]}
xxxxxxx "storage":{"disks":[{}]}
xxxxxxx "storage":{"disks":[{"device":""}]}
xxxxxxx "storage":{"disks":[{"device":"a"}]}
xxxxxxx "storage":{"disks":[{"device":"/dev//a"}]}
xxxxxxx "storage":{"disks":[{"device":5}]}
xxxxxxx "storage":{"disks":[{"device":"/dev/a"},{"device":"/dev/a"}]}
xxxxxxx "storage":{"disks":[{"device":"/dev/a","wipeTable":"x"}]}
xxxxxxx "storage":{"disks":[{"device":"/dev/a","partitions":{}}]}
xxxxxxx "storage":{"disks":[{"partitions":[{}]}]}
"#,
    );
}

/// The partitions of one disk.
#[test]
fn partitions() {
    check(
        r#"{"ignition":{"version":"VERSION"},"storage":{"disks":[{"device":"/d","partitions":[CASE]}]}}"#,
        r#"
vvvvvvv {"number":1}
vvvvvvv {"label":"a"}
xxxxxxx {}
xxxxxxx {"number":0}
vvvvvvv {"number":0,"label":"a"}
vvvvvvv {"number":-1}
vvvvvvv {"number":129}
vvvvvvv {"number":null,"label":"a"}
xxxxxxx {"number":"1"}
xxxxxxx {"number":1},{"number":1}
vvvvvvv {"number":1},{"number":2}
xxxxxxx {"label":"a"},{"label":"a"}
xxxxxxx {"number":1,"label":"a"},{"number":2,"label":"a"}
xxxxxxx {"number":1,"label":"a"},{"label":"a"}
xxxxxxx {"number":1,"label":""},{"number":2,"label":""}
vvvvvvv {"label":""}
xxxxxxx {"label":null}
vvvvvvv {"number":1},{"label":"a"}
vvvvvvv {"label":"123456789012345678901234567890123456"}
xxxxxxx {"label":"1234567890123456789012345678901234567"}
vvvvvvv {"label":"ääääääääääääääääää"}
xxxxxxx {"label":"äääääääääääääääääää"}
xxxxxxx {"label":"a:b"}
xxxxxxx {"label":5}
vvvvvvv {"number":1,"guid":"01234567-89ab-cdef-EDCB-A98765432101"}
vvvvvvv {"number":1,"guid":""}
xxxxxxx {"number":1,"guid":"01234567-89ab-cdef-edcb-a9876543210"}
xxxxxxx {"number":1,"guid":"g1234567-89ab-cdef-edcb-a98765432101"}
xxxxxxx {"number":1,"guid":"{01234567-89ab-cdef-edcb-a98765432101}"}
xxxxxxx {"number":1,"guid":"01234567-89ab-cdef-edcb-a98765432101\n"}
vvvvvvv {"number":1,"typeGuid":"01234567-89ab-cdef-edcb-a98765432101"}
xxxxxxx {"number":1,"typeGuid":"linux"}
vvvvvvv {"number":1,"typeGuid":null}
vvvvvvv {"number":1,"sizeMiB":10,"startMiB":1}
vvvvvvv {"number":1,"sizeMiB":-1}
xxxxxxx {"number":1,"sizeMiB":1.5}
xxxxxxx {"number":1,"startMiB":"1"}
vvvvvvv {"number":1,"sizeMiB":10,"startMiB":1},{"number":2,"sizeMiB":10,"startMiB":11}
xxxxxxx {"number":1,"sizeMiB":10,"startMiB":1},{"number":2,"sizeMiB":10,"startMiB":10}
xxxxxxx {"number":1,"sizeMiB":10,"startMiB":1},{"number":2,"sizeMiB":0,"startMiB":10}
vvvvvvv {"number":1,"sizeMiB":10,"startMiB":1},{"number":2,"sizeMiB":0,"startMiB":11}
xxxxxxx {"number":1,"sizeMiB":0,"startMiB":1},{"number":2,"sizeMiB":0,"startMiB":1}
vvvvvvv {"number":1,"sizeMiB":0,"startMiB":0},{"number":2,"sizeMiB":0,"startMiB":0}
vvvvvvv {"number":1,"sizeMiB":10,"startMiB":0},{"number":2,"sizeMiB":10,"startMiB":0}
vvvvvvv {"number":1,"sizeMiB":10},{"number":2,"sizeMiB":10,"startMiB":1}
xxxxxxx {"number":1,"sizeMiB":100,"startMiB":1},{"number":2,"sizeMiB":10,"startMiB":20}
xxxxxxx {"number":1,"sizeMiB":10,"startMiB":20},{"number":2,"sizeMiB":100,"startMiB":1}
xxxxxxx {"number":1,"sizeMiB":-5,"startMiB":10},{"number":2,"sizeMiB":10,"startMiB":1}
xxxxxxx {"number":1,"sizeMiB":-5,"startMiB":10},{"number":2,"sizeMiB":2,"startMiB":7}
xxxxxxx {"number":1,"sizeMiB":9223372036854775807,"startMiB":9223372036854775807},{"number":2,"sizeMiB":2,"startMiB":7}
xxxxxxx {"number":3,"sizeMiB":10,"startMiB":30},{"number":1,"sizeMiB":10,"startMiB":1},{"number":2,"sizeMiB":10,"startMiB":35}
vvvvvvv {"number":1,"shouldExist":false}
vvvvvvv {"number":1,"shouldExist":true,"label":"a"}
xxxxxxx {"number":1,"shouldExist":false,"label":"a"}
xxxxxxx {"number":1,"shouldExist":false,"label":""}
vvvvvvv {"number":1,"shouldExist":false,"guid":""}
xxxxxxx {"number":1,"shouldExist":false,"guid":"01234567-89ab-cdef-edcb-a98765432101"}
xxxxxxx {"number":1,"shouldExist":false,"typeGuid":"01234567-89ab-cdef-edcb-a98765432101"}
xxxxxxx {"number":1,"shouldExist":false,"startMiB":0}
xxxxxxx {"number":1,"shouldExist":false,"sizeMiB":0}
vvvvvvv {"number":1,"shouldExist":false,"wipePartitionEntry":true}
vvvvvvv {"number":1,"shouldExist":false},{"number":0,"label":"a"}
xxxxxxx {"shouldExist":false}
xxxxxxx {"label":"a","shouldExist":false}
wwvvvvv {"number":1,"wipePartitionEntry":true,"resize":true}
wwvvvvv {"number":1,"resize":true,"sizeMiB":1}
wwxxxxx {"number":1,"resize":"x"}
xxxxxxx {"number":1,"wipePartitionEntry":0}
wwwwwww {"number":1,"size":5}
xxxxxxx null
xxxxxxx 5
"#,
    );
}

/// One RAID array but for its name.
#[test]
fn arrays() {
    check(
        r#"{"ignition":{"version":"VERSION"},"storage":{"raid":[{"name":"a",CASE}]}}"#,
        r#"
vvvvvvv "level":"raid1","devices":["/a","/b"]
xxxxxxx "level":"raid1","devices":["/a","/a"]
xxxxxxx "level":"raid1","devices":["/a","b"]
xxxxxxx "level":"raid1","devices":["/a",""]
xxxxxxx "level":"raid1","devices":["/a",null]
xxxxxxx "level":"raid1","devices":["/a/"]
xxxxxxx "level":"raid1","devices":[]
xxxxxxx "level":"raid1"
xxxxxxx "level":"raid1","devices":"/a"
xxxxxxx "devices":["/a"]
xxxxxxx "level":"","devices":["/a"]
xxxxxxx "level":null,"devices":["/a"]
xxxxxxx "level":1,"devices":["/a"]
vvvvvvv "level":"linear","devices":["/a"]
xxxxxxx "level":"linear","devices":["/a"],"spares":1
vvvvvvv "level":"linear","devices":["/a"],"spares":0
xxxxxxx "level":"raid0","devices":["/a"],"spares":1
vvvvvvv "level":"0","devices":["/a"]
vvvvvvv "level":"stripe","devices":["/a"]
xxxxxxx "level":"stripe","devices":["/a"],"spares":-1
vvvvvvv "level":"1","devices":["/a"],"spares":1
vvvvvvv "level":"mirror","devices":["/a"]
vvvvvvv "level":"raid4","devices":["/a"]
vvvvvvv "level":"4","devices":["/a"]
vvvvvvv "level":"raid5","devices":["/a"]
vvvvvvv "level":"5","devices":["/a"]
vvvvvvv "level":"raid6","devices":["/a"]
vvvvvvv "level":"6","devices":["/a"]
vvvvvvv "level":"raid10","devices":["/a"]
vvvvvvv "level":"10","devices":["/a"]
xxxxxxx "level":"raid7","devices":["/a"]
xxxxxxx "level":"RAID1","devices":["/a"]
xxxxxxx "level":"raid1","devices":["/a"],"spares":"1"
vvvvvvv "level":"raid1","devices":["/a"],"options":["-x","-x"]
xxxxxxx "level":"raid1","devices":["/a"],"options":"-x"
"#,
    );
}

/// Names of RAID arrays.
#[test]
fn several_arrays() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
vvvvvvv "storage":{"raid":[{"level":"raid1","devices":["/a"]}]}
xxxxxxx "storage":{"raid":[{"name":"a","level":"raid1","devices":["/a"]},{"name":"a","level":"raid1","devices":["/b"]}]}
vvvvvvv "storage":{"raid":[{"name":"a/b","level":"raid1","devices":["/a"]}]}
"#,
    );
}

/// One file system.
#[test]
fn filesystem() {
    check(
        r#"{"ignition":{"version":"VERSION"},"storage":{"filesystems":[{CASE}]}}"#,
        r#"
vvvvvvv "device":"/a","format":"ext4"
vvvvvvv "device":"/a"
xxxxxxx "format":"ext4"
xxxxxxx "device":"","format":"ext4"
xxxxxxx "device":"a","format":"ext4"
xxxxxxx "device":"/a/../b","format":"ext4"
vvvvvvv "device":"/a","format":"btrfs"
vvvvvvv "device":"/a","format":"xfs"
vvvvvvv "device":"/a","format":"swap"
vvvvvvv "device":"/a","format":"vfat"
xxxvvvv "device":"/a","format":"none"
xxxxxxx "device":"/a","format":"ext3"
xxxxxxx "device":"/a","format":"virtiofs"
vvvvvvv "device":"/a","format":""
vvvvvvv "device":"/a","format":null
xxxxxxx "device":"/a","format":5
vvvvvvv "device":"/a","format":"ext4","path":"/p"
xxxxxxx "device":"/a","format":"ext4","path":"p"
xxxxxxx "device":"/a","format":"ext4","path":"/p/"
vvvvvvv "device":"/a","format":"ext4","path":""
xxxxxxx "device":"/a","path":"/p"
vvvvvvv "device":"/a","path":""
xxxxxxx "device":"/a","label":"l"
vvvvvvv "device":"/a","label":""
xxxxxxx "device":"/a","uuid":"u"
vvvvvvv "device":"/a","uuid":""
xxxxxxx "device":"/a","wipeFilesystem":true
vvvvvvv "device":"/a","wipeFilesystem":false
xxxxxxx "device":"/a","options":["-x"]
vvvvvvv "device":"/a","options":[]
wxxxxxx "device":"/a","mountOptions":["x"]
wvvvvvv "device":"/a","mountOptions":[]
vvvvvvv "device":"/a","format":"ext4","uuid":"nonsense"
wvvvvvv "device":"/a","format":"ext4","options":["-x","-x"],"mountOptions":["x","x"],"wipeFilesystem":true
xxxxxxx "device":"/a","format":"ext4","options":[5]
wxxxxxx "device":"/a","format":"ext4","mountOptions":"x"
vvvvvvv "device":"/a","format":"ext4","label":"1234567890123456"
xxxxxxx "device":"/a","format":"ext4","label":"12345678901234567"
xxxxxxx "device":"/a","format":"ext4","label":"äääääääää"
vvvvvvv "device":"/a","format":"xfs","label":"123456789012"
xxxxxxx "device":"/a","format":"xfs","label":"1234567890123"
vvvvvvv "device":"/a","format":"swap","label":"123456789012345"
xxxxxxx "device":"/a","format":"swap","label":"1234567890123456"
vvvvvvv "device":"/a","format":"vfat","label":"12345678901"
xxxxxxx "device":"/a","format":"vfat","label":"123456789012"
vvvvvvv "device":"/a","format":"btrfs","label":"<256>"
xxxxxxx "device":"/a","format":"btrfs","label":"<257>"
xxxvvvv "device":"/a","format":"none","label":"<257>"
xxxxxxx "device":"/a","format":"ext3","label":"<257>"
xxxxxxx "device":"/a","format":"ext4","wipeFilesystem":"x"
"#,
    );
}

/// File systems among each other, and with disks.
#[test]
fn filesystems() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
xxxxxxx "storage":{"filesystems":[{"device":"/a","format":"ext4"},{"device":"/a","format":"xfs"}]}
vvvvvvv "storage":{"filesystems":[{"device":"/a","format":"ext4","path":"/p"},{"device":"/b","format":"xfs","path":"/p"}]}
vvvvvvv "storage":{"filesystems":[{"device":"/a","format":"ext4"}],"disks":[{"device":"/a"}]}
wwwwwww "storage":{"filesystems":[{"device":"/a","format":"ext4"}],"disks":[{"device":"/a","wipeTable":true}]}
vvvvvvv "storage":{"filesystems":[{"device":"/a","format":"ext4","wipeFilesystem":true}],"disks":[{"device":"/a","wipeTable":true}]}
wwwwwww "storage":{"filesystems":[{"device":"/a","format":"ext4"}],"disks":[{"device":"/a","partitions":[{"number":1}]}]}
"#,
    );
}
