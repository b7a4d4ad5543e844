//! Cases for `storage.luks`.

use super::check;

/// One encrypted volume.
#[test]
fn volume() {
    check(
        r#"{"ignition":{"version":"VERSION"},"storage":{"luks":[{CASE}]}}"#,
        r#"
wwvvvvv "name":"a","device":"/d"
wwvvvvv "device":"/d"
wwxxxxx "name":"a/b","device":"/d"
wwxxxxx "name":"a"
wwxxxxx "name":"a","device":""
wwxxxxx "name":"a","device":"d"
wwxxxxx "name":"a","device":"/d/"
wwxxxxx "name":"a","device":null
wwxxxxx "name":"a","device":5
wwvvvvv "name":"a","device":"/d","label":"12345678901234567890123456789012345678901234567"
wwxxxxx "name":"a","device":"/d","label":"123456789012345678901234567890123456789012345678"
wwxxxxx "name":"a","device":"/d","label":5
wwvvvvv "name":"a","device":"/d","uuid":"x","wipeVolume":true,"options":["x","x"]
wwxxxxx "name":"a","device":"/d","uuid":5
wwxxxxx "name":"a","device":"/d","wipeVolume":"x"
wwxxxxx "name":"a","device":"/d","options":[{}]
wwwwvvv "name":"a","device":"/d","discard":true
wwwwxxx "name":"a","device":"/d","discard":"x"
wwwwvvv "name":"a","device":"/d","openOptions":["x"]
wwwwxxx "name":"a","device":"/d","openOptions":["x","x"]
wwwwxxx "name":"a","device":"/d","openOptions":"x"
wwvvvvv "name":"a","device":"/d","keyFile":{"source":"data:,k"}
wwxxxxx "name":"a","device":"/d","keyFile":{"source":"bad"}
wwvvvvv "name":"a","device":"/d","keyFile":{}
wwwwwww "name":"a","device":"/d","keyFile":null
wwxxxxx "name":"a","device":"/d","keyFile":{"source":"data:,k","compression":"x"}
wwxxxxx "name":"a","device":"/d","keyFile":"x"
wwvvvvv "name":"a","device":"/d","clevis":{}
wwvwwww "name":"a","device":"/d","clevis":null
wwvvvvv "name":"a","device":"/d","clevis":{"tpm2":true}
wwxxxxx "name":"a","device":"/d","clevis":{"tpm2":"x"}
wwvvvvv "name":"a","device":"/d","clevis":{"threshold":2}
wwxxxxx "name":"a","device":"/d","clevis":{"threshold":"x"}
wwvvvvv "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":"x"}]}
wwvvvvv "name":"a","device":"/d","clevis":{"tang":[{"url":"https://t","thumbprint":"x"},{"url":"http://t","thumbprint":"x"}]}
wwxxxxx "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":"x"},{"url":"http://t","thumbprint":"y"}]}
wwxxxxx "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t"}]}
wwxxxxx "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":""}]}
wwxxxxx "name":"a","device":"/d","clevis":{"tang":[{"thumbprint":"x"}]}
wwxxxxx "name":"a","device":"/d","clevis":{"tang":[{"url":"ftp://t","thumbprint":"x"}]}
wwxxxxx "name":"a","device":"/d","clevis":{"tang":[{"url":"http://%","thumbprint":"x"}]}
wwxxxxx "name":"a","device":"/d","clevis":{"tang":[{"url":5,"thumbprint":"x"}]}
wwwwvvv "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":"x","advertisement":"{}"}]}
wwwwvvv "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":"x","advertisement":""}]}
wwwwxxx "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":"x","advertisement":"{"}]}
wwwwxxx "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":"x","advertisement":"1e999"}]}
wwwwvvv "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":"x","advertisement":" [1] "}]}
wwwwxxx "name":"a","device":"/d","clevis":{"tang":[{"url":"http://t","thumbprint":"x","advertisement":5}]}
wwvvvvv "name":"a","device":"/d","clevis":{"custom":{"pin":"sss","config":"c","needsNetwork":true}}
wwvvvvv "name":"a","device":"/d","clevis":{"custom":{"pin":"tpm2","config":"c"}}
wwvvvvv "name":"a","device":"/d","clevis":{"custom":{"pin":"tang","config":"c"}}
wwxxxxv "name":"a","device":"/d","clevis":{"custom":{"pin":"pkcs11","config":"c"}}
wwxxxxx "name":"a","device":"/d","clevis":{"custom":{"pin":"sss"}}
wwxxxxx "name":"a","device":"/d","clevis":{"custom":{"config":"c"}}
wwvxxxx "name":"a","device":"/d","clevis":{"custom":{"needsNetwork":true}}
wwvvvvv "name":"a","device":"/d","clevis":{"custom":{"needsNetwork":false}}
wwvvvvv "name":"a","device":"/d","clevis":{"custom":{}}
wwxvvvv "name":"a","device":"/d","clevis":{"custom":{},"tpm2":true}
wwvwwww "name":"a","device":"/d","clevis":{"custom":null,"tpm2":true}
wwxxxxx "name":"a","device":"/d","clevis":{"custom":{"pin":"sss","config":"c"},"tpm2":true}
wwxxxxx "name":"a","device":"/d","clevis":{"custom":{"pin":"sss","config":"c"},"threshold":1}
wwvvvvv "name":"a","device":"/d","clevis":{"custom":{"pin":"sss","config":"c"},"threshold":0,"tpm2":false,"tang":[]}
wwxxxxx "name":"a","device":"/d","clevis":{"custom":{"pin":"sss","config":"c"},"tang":[{"url":"http://t","thumbprint":"x"}]}
wwxxxxx "name":"a","device":"/d","clevis":{"custom":{"pin":5}}
wwwwwvv "name":"a","device":"/d","cex":{"enabled":true}
wwwwwvv "name":"a","device":"/d","cex":{"enabled":false},"clevis":{"tpm2":true}
wwwwwxx "name":"a","device":"/d","cex":{"enabled":true},"clevis":{"tpm2":true}
wwwwwvv "name":"a","device":"/d","cex":{"enabled":true},"clevis":{"tpm2":false}
wwwwwxx "name":"a","device":"/d","cex":{"enabled":true},"clevis":{"custom":{"pin":"sss","config":"c"}}
wwwwwxx "name":"a","device":"/d","cex":{"enabled":true},"clevis":{"threshold":1}
wwwwwxx "name":"a","device":"/d","cex":{"enabled":true},"keyFile":{"source":"data:,k"}
wwwwwvv "name":"a","device":"/d","cex":{"enabled":true},"keyFile":{"source":""}
wwwwwxx "name":"a","device":"/d","cex":{"enabled":"x"}
wwwwwww "name":"a","device":"/d","cex":null
"#,
    );
}

/// Encrypted volumes among each other.
#[test]
fn volumes() {
    check(
        r#"{"ignition":{"version":"VERSION"},CASE}"#,
        r#"
wwxxxxx "storage":{"luks":[{"name":"a","device":"/d"},{"name":"a","device":"/e"}]}
wwvvvvv "storage":{"luks":[{"name":"a","device":"/d"},{"name":"b","device":"/d"}]}
"#,
    );
}
