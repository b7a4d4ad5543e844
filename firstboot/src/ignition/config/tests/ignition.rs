//! Cases for `ignition`, `kernelArguments` and `passwd`.

use super::check;

/// The section that every config has: sources, proxies, certificate authorities, timeouts.
#[test]
fn ignition() {
    check(
        r#"{"ignition":{"version":"VERSION",CASE}}"#,
        r#"
vvvvvvv "config":{"merge":[{"source":"http://a/b"}]}
vxxxxxx "config":{"merge":[{}]}
vxxxxxx "config":{"merge":[{"source":null}]}
vxxxxxx "config":{"merge":[{"source":""}]}
wxxxxxx "config":{"merge":[null]}
xxxxxxx "config":{"merge":[{"source":"ftp://a"}]}
vvvvvvv "config":{"merge":[{"source":"http://a"},{"source":"http://b"}]}
xxxxxxx "config":{"merge":[{"source":"http://a"},{"source":"http://a"}]}
wvvvvvv "config":{"merge":[{"source":"data:,a","compression":"gzip"}]}
wxxxxxx "config":{"merge":[{"source":"data:,a","compression":"xz"}]}
wxxxxxx "config":{"merge":[{"source":"data:,a","compression":5}]}
xxxxxxx "config":{"merge":[{"source":"data:,a","verification":{"hash":"sha512-0"}}]}
vxxxxxx "config":{"merge":[{"verification":{"hash":"sha512-<128>"}}]}
vvvvvvv "config":{"replace":{"source":"https://a"}}
vvvvvvv "config":{"replace":{}}
vvvvvvv "config":{"replace":{"source":""}}
xxxxxxx "config":{"replace":{"source":"x:y"}}
vxxxxxx "config":{"replace":{"verification":{"hash":"sha512-<128>"}}}
wvvvvvv "config":{"replace":{"source":"http://a","httpHeaders":[{"name":"a","value":"b"}]}}
wvvvvvv "config":{"replace":{"source":"http://a","httpHeaders":[{"name":"a"}]}}
wxxxxxx "config":{"replace":{"source":"http://a","httpHeaders":[{"name":"a","value":""}]}}
wxxxxxx "config":{"replace":{"source":"http://a","httpHeaders":[{"name":"","value":"b"}]}}
wxxxxxx "config":{"replace":{"source":"http://a","httpHeaders":[{"value":"b"}]}}
wxxxxxx "config":{"replace":{"source":"http://a","httpHeaders":[{"name":"a"},{"name":"a"}]}}
wvvvvvv "config":{"replace":{"source":"http://a","httpHeaders":[{"name":"a"},{"name":"A"}]}}
wvvvvvv "config":{"replace":{"source":"http://a","httpHeaders":[]}}
wxxxxxx "config":{"replace":{"source":"tftp://a","httpHeaders":[{"name":"a","value":"b"}]}}
wxxxxxx "config":{"replace":{"httpHeaders":[{"name":"a","value":"b"}]}}
wxxxxxx "config":{"replace":{"source":"http://a","httpHeaders":{"a":"b"}}}
wwwwwww "config":null
vvvvvvv "config":{}
xxxxxxx "config":[]
xxxxxxx "config":5
wvvvvvv "proxy":{"httpProxy":"http://a:1","httpsProxy":"https://a","noProxy":["a","b"]}
wvvvvvv "proxy":{"httpProxy":"https://a:1"}
wwwwwww "proxy":{"httpsProxy":"http://a"}
wxxxxxx "proxy":{"httpProxy":"socks5://a"}
wxxxxxx "proxy":{"httpProxy":""}
wvvvvvv "proxy":{"httpProxy":null}
wxxxxxx "proxy":{"httpProxy":"http://a b"}
wxxxxxx "proxy":{"httpsProxy":"a:1"}
wxxxxxx "proxy":{"noProxy":["a","a"]}
wvvvvvv "proxy":{"noProxy":[null,"a"]}
wxxxxxx "proxy":{"noProxy":"a"}
vvvvvvv "security":{"tls":{"certificateAuthorities":[{"source":"data:,a"}]}}
xxxxxxx "security":{"tls":{"certificateAuthorities":[{}]}}
xxxxxxx "security":{"tls":{"certificateAuthorities":[{"source":null}]}}
xxxxxxx "security":{"tls":{"certificateAuthorities":[{"source":""}]}}
xxxxxxx "security":{"tls":{"certificateAuthorities":[{"source":"x"}]}}
xxxxxxx "security":{"tls":{"certificateAuthorities":[{"source":"data:,a"},{"source":"data:,a"}]}}
wvvvvvv "security":{"tls":{"certificateAuthorities":[{"source":"data:,a","compression":"gzip","httpHeaders":[]}]}}
xvvvvvv "security":{"tls":{"certificateAuthorities":[{"source":"http://a","verification":{"hash":"sha256-<64>"}}]}}
xxxxxxx "security":{"tls":{"certificateAuthorities":{}}}
wwwwwww "security":{"tls":null}
wwwwwww "security":null
vvvvvvv "timeouts":{"httpResponseHeaders":1,"httpTotal":0}
vvvvvvv "timeouts":{"httpResponseHeaders":-1}
vvvvvvv "timeouts":{"httpTotal":null}
xxxxxxx "timeouts":{"httpTotal":1.0}
xxxxxxx "timeouts":{"httpTotal":1e2}
xxxxxxx "timeouts":{"httpTotal":"1"}
vvvvvvv "timeouts":{"httpTotal":9223372036854775807}
xxxxxxx "timeouts":{"httpTotal":9223372036854775808}
vvvvvvv "timeouts":{"httpTotal":-9223372036854775808}
xxxxxxx "timeouts":{"httpTotal":-9223372036854775809}
vvvvvvv "timeouts":{"httpTotal":-0}
xxxxxxx "timeouts":{"httpTotal":true}
wwwwwww "timeouts":{"httpTotle":1}
wwwwwww "unknown":{"a":[1,2,{"b":null}]}
wxxxxxx "Proxy":{"HTTPPROXY":"x"}
wwwwwww "config":{"merge":[{"Source":"http://a"}]}
xxxxxxx "config":{"merge":[{"source":"http://a","source":"ftp://a"}]}
vvvvvvv "config":{"merge":[{"source":"ftp://a","source":"http://a"}]}
vxxxxxx "config":{"merge":[{"source":"http://a","source":null}]}
"#,
    );
}

/// Kernel arguments, since 3.3.0.
#[test]
fn kernel_arguments() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
wwwvvvv "kernelArguments":{"shouldExist":["a","b"],"shouldNotExist":["c"]}
wwwxxxx "kernelArguments":{"shouldExist":["a","a"]}
wwwxxxx "kernelArguments":{"shouldNotExist":["a","a"]}
wwwxxxx "kernelArguments":{"shouldExist":["a"],"shouldNotExist":["a"]}
wwwxxxx "kernelArguments":{"shouldExist":"a"}
wwwxxxx "kernelArguments":{"shouldExist":[1]}
wwwvvvv "kernelArguments":{}
wwwwwww "kernelArguments":null
wwwxxxx "kernelArguments":[]
"#,
    );
}

/// Users and groups.
#[test]
fn passwd() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
vvvvvvv "passwd":{"users":[{"name":"a"}],"groups":[{"name":"a"}]}
xxxxxxx "passwd":{"users":[{"name":"a"},{"name":"a"}]}
xxxxxxx "passwd":{"groups":[{"name":"a"},{"name":"a"}]}
vvvvvvv "passwd":{"users":[{}]}
vvvvvvv "passwd":{"users":[{"name":""}]}
vvvvvvv "passwd":{"users":[{"name":null}]}
wwwwwww "passwd":{"users":[null]}
xxxxxxx "passwd":{"users":[{},{}]}
vvvvvvv "passwd":{"users":[{"name":"a","gecos":"g","homeDir":"/h","noCreateHome":true,"noLogInit":true,"noUserGroup":false,"passwordHash":"*","primaryGroup":"g","shell":"/s","system":true,"uid":7,"groups":["x","y"],"sshAuthorizedKeys":["k"]}]}
wwvvvvv "passwd":{"users":[{"name":"a","shouldExist":false}]}
wwxxxxx "passwd":{"users":[{"name":"a","shouldExist":"no"}]}
xxxxxxx "passwd":{"users":[{"name":"a","uid":"7"}]}
vvvvvvv "passwd":{"users":[{"name":"a","uid":-7}]}
xxxxxxx "passwd":{"users":[{"name":"a","uid":7.5}]}
xxxxxxx "passwd":{"users":[{"name":"a","system":1}]}
xxxxxxx "passwd":{"users":[{"name":"a","gecos":[]}]}
xxxxxxx "passwd":{"users":[{"name":"a","groups":["x","x"]}]}
vvvvvvv "passwd":{"users":[{"name":"a","groups":[null]}]}
xxxxxxx "passwd":{"users":[{"name":"a","groups":[null,""]}]}
xxxxxxx "passwd":{"users":[{"name":"a","groups":"x"}]}
vvvvvvv "passwd":{"users":[{"name":"a","groups":null}]}
xxxxxxx "passwd":{"users":[{"name":"a","sshAuthorizedKeys":["k","k"]}]}
xxxxxxx "passwd":{"users":[{"name":"a","sshAuthorizedKeys":[{}]}]}
vvvvvvv "passwd":{"users":[{"name":"a","homeDir":"relative"}]}
wwwwwww "passwd":{"users":[{"name":"a","unknown":1}]}
xxxxxxx "passwd":{"users":{}}
xxxxxxx "passwd":{"users":[5]}
xxxxxxx "passwd":{"users":[{"name":5}]}
vvvvvvv "passwd":{"groups":[{"name":"a","gid":1,"passwordHash":"","system":false}]}
wwvvvvv "passwd":{"groups":[{"name":"a","shouldExist":false}]}
xxxxxxx "passwd":{"groups":[{"name":"a","gid":"1"}]}
xxxxxxx "passwd":{"groups":[{"name":"a","gid":{}}]}
xxxxxxx "passwd":{"groups":[{"name":"a","passwordHash":1}]}
xxxxxxx "passwd":{"groups":[{"name":"a","system":"yes"}]}
vvvvvvv "passwd":{"groups":[{}]}
vvvvvvv "passwd":{}
wwwwwww "passwd":null
xxxxxxx "passwd":""
"#,
    );
}
