//! Cases for `storage.files`, `directories` and `links`.

use super::check;

/// Files: paths, owners, modes, contents, and how keys are read.
#[test]
fn files() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
vvvvvvv "storage":{"files":[{"path":"/a"}]}
xxxxxxx "storage":{"files":[{}]}
xxxxxxx "storage":{"files":[null]}
xxxxxxx "storage":{"files":[{"path":""}]}
xxxxxxx "storage":{"files":[{"path":null}]}
xxxxxxx "storage":{"files":[{"path":"a"}]}
xxxxxxx "storage":{"files":[{"path":"/a/"}]}
vvvvvvv "storage":{"files":[{"path":"/"}]}
xxxxxxx "storage":{"files":[{"path":"//a"}]}
xxxxxxx "storage":{"files":[{"path":"/a/../b"}]}
xxxxxxx "storage":{"files":[{"path":"/a/./b"}]}
xxxxxxx "storage":{"files":[{"path":"/../a"}]}
vvvvvvv "storage":{"files":[{"path":"/a/..b"}]}
vvvvvvv "storage":{"files":[{"path":"/ä b"}]}
xxxxxxx "storage":{"files":[{"path":"/a"},{"path":"/a"}]}
xxxxxxx "storage":{"files":[{"path":"/a"}],"directories":[{"path":"/a"}]}
xxxxxxx "storage":{"files":[{"path":"/a"}],"links":[{"path":"/a","target":"b"}]}
xxxxxxx "storage":{"directories":[{"path":"/a"}],"links":[{"path":"/a","target":"b"}]}
xxxxxxx "storage":{"files":[{"path":"/l/a"}],"links":[{"path":"/l","target":"b"}]}
vvvvvvv "storage":{"files":[{"path":"/l2/a"}],"links":[{"path":"/l","target":"b"}]}
xxxxxxx "storage":{"files":[{"path":"/x/l/a/b"}],"links":[{"path":"/x/l","target":"b"}]}
vvvvvvv "storage":{"files":[{"path":"/a","mode":420}]}
vvvvvvv "storage":{"files":[{"path":"/a","mode":0}]}
wwwwwwv "storage":{"files":[{"path":"/a","mode":4095}]}
wwwwwwv "storage":{"files":[{"path":"/a","mode":512}]}
vvvvvvv "storage":{"files":[{"path":"/a","mode":511}]}
xxxxxxx "storage":{"files":[{"path":"/a","mode":4096}]}
xxxxxxx "storage":{"files":[{"path":"/a","mode":-1}]}
xxxxxxx "storage":{"files":[{"path":"/a","mode":"0644"}]}
vvvvvvv "storage":{"files":[{"path":"/a","mode":null}]}
xxxxxxx "storage":{"files":[{"path":"/a","overwrite":true}]}
vvvvvvv "storage":{"files":[{"path":"/a","overwrite":false}]}
vvvvvvv "storage":{"files":[{"path":"/a","overwrite":true,"contents":{"source":""}}]}
xxxxxxx "storage":{"files":[{"path":"/a","overwrite":true,"contents":{"source":null}}]}
vvvvvvv "storage":{"files":[{"path":"/a","overwrite":true,"contents":{"source":"data:,"}}]}
xxxxxxx "storage":{"files":[{"path":"/a","overwrite":"x"}]}
vvvvvvv "storage":{"files":[{"path":"/a","user":{"id":1},"group":{"name":"g"}}]}
xxxxxxx "storage":{"files":[{"path":"/a","user":{"id":1,"name":"u"}}]}
vvvvvvv "storage":{"files":[{"path":"/a","user":{"id":1,"name":""}}]}
xxxxxxx "storage":{"files":[{"path":"/a","group":{"id":1,"name":"u"}}]}
xxxxxxx "storage":{"files":[{"path":"/a","group":{"id":"1"}}]}
vvvvvvv "storage":{"files":[{"path":"/a","user":{"id":-1}}]}
xxxxxxx "storage":{"files":[{"path":"/a","user":"root"}]}
wwwwwww "storage":{"files":[{"path":"/a","user":null}]}
vvvvvvv "storage":{"files":[{"path":"/a","append":[{"source":"data:,a"},{"source":"data:,a"}]}]}
xxxxxxx "storage":{"files":[{"path":"/a","append":[{"source":"bad"}]}]}
vvvvvvv "storage":{"files":[{"path":"/a","append":[{}]}]}
xxxxxxx "storage":{"files":[{"path":"/a","append":{}}]}
vvvvvvv "storage":{"files":[{"path":"/a","contents":{"source":"data:,a"},"append":[{"source":"data:,b","compression":"gzip","verification":{"hash":"sha512-<128>"}}]}]}
vvvvvvv "storage":{"files":[{"path":"/a","contents":{"compression":"gzip"}}]}
vvvvvvv "storage":{"files":[{"path":"/a","contents":{"compression":""}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"compression":"GZIP"}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","compression":"bzip2"}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"verification":{"hash":"sha512-<128>"}}}]}
vvvvvvv "storage":{"files":[{"path":"/a","contents":{"source":"","verification":{"hash":"sha512-<128>"}}}]}
vvvvvvv "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":"sha512-<128>"}}}]}
xvvvvvv "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":"sha256-<64>"}}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":"sha256-<128>"}}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":"sha512-<64>"}}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":"md5-abc"}}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":""}}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":"sha512"}}}]}
xvvvvvv "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":"sha256-<64>"}}}]}
vvvvvvv "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{"hash":null}}}]}
vvvvvvv "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":{}}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"data:,a","verification":"x"}}]}
wvvvvvv "storage":{"files":[{"path":"/a","contents":{"source":"http://a","httpHeaders":[{"name":"a","value":"b"}]}}]}
wxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"s3://b/k","httpHeaders":[{"name":"a","value":"b"}]}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":"data:,a"}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":5}}]}
wwwwwww "storage":{"files":[{"path":"/a","contents":{"inline":"x"}}]}
wwwwwww "storage":{"files":[{"path":"/a","unknown":{}}]}
xxxxxxx "storage":{"files":[{"path":"/a","contents":{"source":"data:,a"},"contents":{"compression":"bad"}}]}
xxxxxxx "storage":{"files":[{"path":"/a","mode":1,"mode":9999}]}
vvvvvvv "storage":{"files":[{"path":"/a","mode":9999,"mode":1}]}
vvvvvvv "storage":{"files":[{"path":"/a","mode":9999,"mode":null}]}
vvvvvvv "storage":{"files":[{"path":"a"}],"files":[{"path":"/a"}]}
vvvvvvv "storage":{"files":[{"path":"a"}],"files":[]}
vvvvvvv "storage":{"files":[{"path":"a"}],"files":null}
xxxxxxx "storage":{"files":[{"path":"a"}],"files":[{}]}
vvvvvvv "storage":{"files":[{"path":"a"}]},"storage":{"files":[{"path":"/a"}]}
xxxxxxx "storage":{"files":[{"path":"a"}]},"storage":null
wwwwwww "storage":{"files":[{"PATH":"/a"}]}
xxxxxxx "storage":{"fileſ":[{"path":"a"}]}
xxxxxxx "\u017ftorage":{"files":[{"path":"a"}]}
xxxxxxx "storage":{"files":"x"}
xxxxxxx "storage":[]
wwwwwww "storage":null
vvvvvvv "storage":{}
wwwwwww "stroage":{}
"#,
    );
}

/// Directories.
#[test]
fn directories() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
vvvvvvv "storage":{"directories":[{"path":"/a","mode":493,"overwrite":true,"user":{"name":"u"},"group":{"id":1}}]}
xxxxxxx "storage":{"directories":[{}]}
xxxxxxx "storage":{"directories":[{"path":"a"}]}
xxxxxxx "storage":{"directories":[{"path":"/a/"}]}
xxxxxxx "storage":{"directories":[{"path":"/a"},{"path":"/a"}]}
xxxxxxx "storage":{"directories":[{"path":"/a","mode":4096}]}
xxxxxxx "storage":{"directories":[{"path":"/a","mode":-1}]}
wwwwwwv "storage":{"directories":[{"path":"/a","mode":1023}]}
xxxxxxx "storage":{"directories":[{"path":"/a","overwrite":1}]}
xxxxxxx "storage":{"directories":[{"path":"/a","user":{"id":1,"name":"u"}}]}
wwwwwww "storage":{"directories":[{"path":"/a","contents":{}}]}
xxxxxxx "storage":{"directories":[{"path":"/l/a"}],"links":[{"path":"/l","target":"b"}]}
xxxxxxx "storage":{"directories":{}}
"#,
    );
}

/// Links, symbolic and hard.
#[test]
fn links() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
vvvvvvv "storage":{"links":[{"path":"/a","target":"b"}]}
vvvxxxx "storage":{"links":[{"path":"/a"}]}
vvvxxxx "storage":{"links":[{"path":"/a","target":""}]}
vvvxxxx "storage":{"links":[{"path":"/a","target":null}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":5}]}
xxxxxxx "storage":{"links":[{"target":"b"}]}
xxxxxxx "storage":{"links":[{"path":"a","target":"b"}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"b"},{"path":"/a","target":"b"}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"b"},{"path":"/a/b","target":"b"}]}
xxxxxxx "storage":{"links":[{"path":"/a/b","target":"b"},{"path":"/a","target":"b"}]}
vvvvvvv "storage":{"links":[{"path":"/","target":"b"}],"files":[{"path":"/a"}]}
xxxxxxx "storage":{"links":[{"target":"b"}],"files":[{"path":"/a"}]}
vvvvvvv "storage":{"links":[{"path":"/a","target":"/b","hard":true}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"/b","hard":true}],"directories":[{"path":"/b"}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"/b/../b/","hard":true}],"directories":[{"path":"/b"}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"../b","hard":true}],"directories":[{"path":"/b"}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"b","hard":true}],"directories":[{"path":"/a/b"}]}
vvvvvvv "storage":{"links":[{"path":"/a","target":"/b","hard":false}],"directories":[{"path":"/b"}]}
vvvxxxx "storage":{"links":[{"path":"/a","hard":true}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"","hard":true}],"directories":[{"path":"/a"}]}
xxxxxxx "storage":{"links":[{"path":"/x/a","target":"","hard":true}],"directories":[{"path":"/x/a"},{"path":"/x"}]}
wwwwwww "storage":{"links":[{"path":"/a","target":"/b","hard":true,"user":{"id":1},"group":{"name":"g"}}]}
wwwwwww "storage":{"links":[{"path":"/a","target":"/b","hard":true,"user":{"name":"u"},"group":{"id":1}}]}
vvvvvvv "storage":{"links":[{"path":"/a","target":"b","user":{"id":1},"group":{"name":"g"},"overwrite":true}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"b","user":{"id":1,"name":"u"}}]}
xxxxxxx "storage":{"links":[{"path":"/a","target":"b","hard":"yes"}]}
wwwwwww "storage":{"links":[{"path":"/a","target":"b","mode":1}]}
"#,
    );
}
