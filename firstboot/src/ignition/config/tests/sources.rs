//! Cases for URLs.

use super::check;

/// URLs of resources.
#[test]
fn sources() {
    check(
        r#"{"ignition":{"version":"VERSION"},"storage":{"files":[{"path":"/a","contents":{"source":"CASE"}}]}}"#,
        r#"
vvvvvvv http://a
vvvvvvv https://a:1/b?c#d
vvvvvvv tftp://a/b
vvvvvvv s3://b/k
vvvvvvv s3://b/k?versionId=1
xxxxxxx s3://b/k?versionId=
xxxxxxx s3://b/k?versionId
vvvvvvv s3:b
xxvvvvv gs://b/k
xxvvvvv gs://b/k?versionId=
xxxxvvv arn:aws:s3:::b/k
xxxxxxx arn:aws:s3:::b
xxxxxxx arn:aws:ec2:::b/k
xxxxxxx arn:aws:s3:r:a:accesspoint/p
xxxxvvv arn:aws:s3:r:a:accesspoint/p/object/k
xxxxxxx arn:aws:s3:::b/k?versionId=
xxxxvvv arn:aws:s3:::b/k?versionId=2
xxxxxxx arn:x
vvvvvvv data:,
vvvvvvv data:,a%20b
xxxxxxx data:,a b
xxxxxxx data:,a#b
xxxxxxx data:,%zz
vvvvvvv data:;base64,YQ==
vvvvvvv data:;base64,YR==
xxxxxxx data:;base64,YQ
xxxxxxx data:;base64,YQ=
xxxxxxx data:;base64,Y-_=
vvvvvvv data:;base64,
vvvvvvv data:text/plain,a
vvvvvvv data:text/plain;charset=utf-8;base64,YQ==
xxxxxxx data:text/plain;base64;charset=utf-8,YQ==
xxxxxxx data:foo/bar,a
vvvvvvv data:x-foo/bar,a
xxxxxxx data:xfoo/bar,a
vvvvvvv data:application/octet-stream;a=%41,b
xxxxxxx data:application/octet-stream;a=%4,b
vvvvvvv data:;a=\"b;c\",d
xxxxxxx data:;a=\"\\q\",d
vvvvvvv data:;a=\"\\u0041\\101\\x41\\\"\",d
xxxxxxx data:;a=\"\\ud800\",d
xxxxxxx data:;a=\"\\'\",d
xxxxxxx data:;a=\"b\"c,d
xxxxxxx data:text,a
vvvvvvv data:text/,a
xxxxxxx data:/x,a
vvvvvvv data:texts/x,a
xxxxxxx data:;,a
xxxxxxx data:;a,b
xxxxxxx data:;a=,b
xxxxxxx data:a
xxxxxxx data:
xxxxxxx DATA:,a
vvvvvvv Http://a
xxxxxxx ftp://a
xxxxxxx file:///a
xxxxxxx oem:///a
xxxxxxx /a
xxxxxxx a/b
xxxxxxx *
xxxxxxx :a
xxxxxxx 1http://a
xxxxxxx http://a\n
xxxxxxx http://a\u007f
xxxxxxx http://a/%4
xxxxxxx http://a#%zz
vvvvvvv http://a#%20
xxxxxxx http://a b/
vvvvvvv http://a/b c
xxxxxxx http://a:x/
vvvvvvv http://a:1:2/
vvvvvvv tftp://a:1:2/
vvvvvvv http://u:p@a/
xxxxxxx http://u^@a/
xxxxxxx http://u%4@a/
vvvvvvv http://u@v@a/
xxxxxxx http://%41/
vvvvvvv http://%e4/
vvvvvvv http://%25/
vvvvvvv http://ä/
xxxxxxx http://a\\b/
xxxxxxx http://a|b/
vvvvvvv http://[::1]:80/
xxxxxxx http://[::1/
xxxxxxx http://[1.2.3.4]/
vvvvvvv http://[::ffff:1.2.3.4]/
xxxxxxx http://[::1]x/
xxxxxxx http://x[::1]/
vvvvvvv http://[fe80::1%25en0]/
xxxxxxx http://[fe80::1%25]/
xxxxxxx http://[fe80::1%en0]/
vvvvvvv http://[fe80::1%25a%20b]/
xxxxxxx http://[g::1]/
vvvvvvv http:
vvvvvvv http:a
vvvvvvv http://
vvvvvvv http:///a
vvvvvvv http://a?%zz
vvvvvvv http://a??
xxxxxxx ht tp://a
xxxxxxx ä://a
xxxxxxx \u0020http://a
"#,
    );
}
