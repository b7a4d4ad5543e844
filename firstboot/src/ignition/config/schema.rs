//! The shape of a config, for all versions in one table: which keys an object has, since which version, what they
//! hold, and what makes two elements of a list the same.
//!
//! From the configuration specifications 3.0 to 3.6. Reading, merging and the search for duplicates follow this table;
//! what values mean is checked in [`super::validate`].

/// An object's keys.
#[derive(Debug)]
pub(super) struct Schema {
    /// What tells two objects in a list apart.
    pub(super) identity: Identity,
    pub(super) fields: &'static [Field],
}

/// A key of an object.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    /// The minor version that has it first.
    pub(super) since: u8,
    pub(super) shape: Shape,
    /// A text that always has a value, the empty one where none is given.
    pub(super) required: bool,
    /// The minor version from which on null takes back what an earlier key of the same name says.
    pub(super) null_clears_since: u8,
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Flag,
    Number,
    /// A number of which zero says the same as its absence.
    NumberOrZero,
    Text,
    Object(&'static Schema),
    Texts(Repeats),
    Objects(&'static Schema, Repeats),
}

/// Whether the elements of a list may be the same, and merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeats {
    /// They may; a child's are appended.
    Allowed,
    /// They may not within the list; a child's element takes the place of its parent's.
    Never,
    /// Nor between the lists of the same object that are marked so.
    NeverAcross,
}

/// The key or keys that tell an object from others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Identity {
    /// Objects that are in no list.
    None,
    Key(&'static str),
    /// The number, else the label.
    Partition,
}

impl Schema {
    /// The field of a key, as a version of the specification has it: exactly so, else in another case.
    pub(super) fn field(&self, key: &str, minor: u8) -> Option<&'static Field> {
        let known = || self.fields.iter().filter(|field| field.since <= minor);
        known().find(|field| field.name == key).or_else(|| known().find(|field| same_folded(field.name, key)))
    }
}

/// Whether a key is a name in any case. Two letters beyond ASCII fold into it: long s and the sign for kelvin.
pub(super) fn same_folded(name: &str, key: &str) -> bool {
    let fold = |character: char| match character {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(key.chars().map(fold))
}

const fn field(name: &'static str, since: u8, shape: Shape) -> Field {
    Field { name, since, shape, required: false, null_clears_since: 0 }
}

/// As [`text`], in versions that do not tell its absence from an empty one.
const fn plain_text(name: &'static str, before: u8) -> Field {
    Field { name, since: 0, shape: Shape::Text, required: false, null_clears_since: before }
}

const fn required(name: &'static str) -> Field {
    Field { name, since: 0, shape: Shape::Text, required: true, null_clears_since: u8::MAX }
}

const fn flag(name: &'static str) -> Field {
    field(name, 0, Shape::Flag)
}

const fn number(name: &'static str) -> Field {
    field(name, 0, Shape::Number)
}

const fn text(name: &'static str) -> Field {
    field(name, 0, Shape::Text)
}

const fn object(name: &'static str, schema: &'static Schema) -> Field {
    field(name, 0, Shape::Object(schema))
}

const fn objects(name: &'static str, schema: &'static Schema) -> Field {
    field(name, 0, Shape::Objects(schema, Repeats::Never))
}

const fn texts(name: &'static str, repeats: Repeats) -> Field {
    field(name, 0, Shape::Texts(repeats))
}

const fn schema(fields: &'static [Field]) -> Schema {
    Schema { identity: Identity::None, fields }
}

const fn keyed(key: &'static str, fields: &'static [Field]) -> Schema {
    Schema { identity: Identity::Key(key), fields }
}

/// The whole config.
pub(super) static CONFIG: Schema = schema(&[
    object("ignition", &IGNITION),
    field("kernelArguments", 3, Shape::Object(&KERNEL_ARGUMENTS)),
    object("passwd", &PASSWD),
    object("storage", &STORAGE),
    object("systemd", &SYSTEMD),
]);

static IGNITION: Schema = schema(&[
    object("config", &SOURCES),
    field("proxy", 1, Shape::Object(&PROXY)),
    object("security", &SECURITY),
    object("timeouts", &TIMEOUTS),
    required("version"),
]);

static SOURCES: Schema = schema(&[objects("merge", &REFERENCE), object("replace", &REFERENCE)]);

/// A resource that 3.0 knows without compression.
static REFERENCE: Schema = keyed(
    "source",
    &[
        field("compression", 1, Shape::Text),
        field("httpHeaders", 1, Shape::Objects(&HEADER, Repeats::Never)),
        text("source"),
        object("verification", &VERIFICATION),
    ],
);

static RESOURCE: Schema = keyed(
    "source",
    &[
        text("compression"),
        field("httpHeaders", 1, Shape::Objects(&HEADER, Repeats::Never)),
        text("source"),
        object("verification", &VERIFICATION),
    ],
);

static HEADER: Schema = keyed("name", &[required("name"), text("value")]);

static VERIFICATION: Schema = schema(&[text("hash")]);

static PROXY: Schema = schema(&[text("httpProxy"), text("httpsProxy"), texts("noProxy", Repeats::Never)]);

static SECURITY: Schema = schema(&[object("tls", &TLS)]);

static TLS: Schema = schema(&[objects("certificateAuthorities", &REFERENCE)]);

static TIMEOUTS: Schema = schema(&[number("httpResponseHeaders"), number("httpTotal")]);

static KERNEL_ARGUMENTS: Schema =
    schema(&[texts("shouldExist", Repeats::NeverAcross), texts("shouldNotExist", Repeats::NeverAcross)]);

static PASSWD: Schema = schema(&[objects("groups", &GROUP), objects("users", &USER)]);

static GROUP: Schema = keyed(
    "name",
    &[number("gid"), required("name"), text("passwordHash"), field("shouldExist", 2, Shape::Flag), flag("system")],
);

static USER: Schema = keyed(
    "name",
    &[
        text("gecos"),
        texts("groups", Repeats::Never),
        text("homeDir"),
        required("name"),
        flag("noCreateHome"),
        flag("noLogInit"),
        flag("noUserGroup"),
        text("passwordHash"),
        text("primaryGroup"),
        texts("sshAuthorizedKeys", Repeats::Never),
        text("shell"),
        field("shouldExist", 2, Shape::Flag),
        flag("system"),
        number("uid"),
    ],
);

static STORAGE: Schema = schema(&[
    field("directories", 0, Shape::Objects(&DIRECTORY, Repeats::NeverAcross)),
    objects("disks", &DISK),
    field("files", 0, Shape::Objects(&FILE, Repeats::NeverAcross)),
    objects("filesystems", &FILESYSTEM),
    field("links", 0, Shape::Objects(&LINK, Repeats::NeverAcross)),
    field("luks", 2, Shape::Objects(&LUKS, Repeats::Never)),
    objects("raid", &RAID),
]);

static OWNER: Schema = schema(&[number("id"), text("name")]);

static DIRECTORY: Schema = keyed(
    "path",
    &[object("group", &OWNER), number("mode"), flag("overwrite"), required("path"), object("user", &OWNER)],
);

static FILE: Schema = keyed(
    "path",
    &[
        field("append", 0, Shape::Objects(&RESOURCE, Repeats::Allowed)),
        object("contents", &RESOURCE),
        object("group", &OWNER),
        number("mode"),
        flag("overwrite"),
        required("path"),
        object("user", &OWNER),
    ],
);

static LINK: Schema = keyed(
    "path",
    &[
        object("group", &OWNER),
        flag("hard"),
        flag("overwrite"),
        required("path"),
        plain_text("target", 3),
        object("user", &OWNER),
    ],
);

static DISK: Schema = keyed("device", &[required("device"), objects("partitions", &PARTITION), flag("wipeTable")]);

static PARTITION: Schema = Schema {
    identity: Identity::Partition,
    fields: &[
        text("guid"),
        text("label"),
        field("number", 0, Shape::NumberOrZero),
        field("resize", 2, Shape::Flag),
        flag("shouldExist"),
        number("sizeMiB"),
        number("startMiB"),
        text("typeGuid"),
        flag("wipePartitionEntry"),
    ],
};

static FILESYSTEM: Schema = keyed(
    "device",
    &[
        required("device"),
        text("format"),
        text("label"),
        field("mountOptions", 1, Shape::Texts(Repeats::Allowed)),
        texts("options", Repeats::Allowed),
        text("path"),
        text("uuid"),
        flag("wipeFilesystem"),
    ],
);

static RAID: Schema = keyed(
    "name",
    &[
        texts("devices", Repeats::Never),
        plain_text("level", 3),
        required("name"),
        texts("options", Repeats::Allowed),
        number("spares"),
    ],
);

static LUKS: Schema = keyed(
    "name",
    &[
        field("cex", 5, Shape::Object(&CEX)),
        object("clevis", &CLEVIS),
        text("device"),
        field("discard", 4, Shape::Flag),
        object("keyFile", &RESOURCE),
        text("label"),
        required("name"),
        field("openOptions", 4, Shape::Texts(Repeats::Never)),
        texts("options", Repeats::Allowed),
        text("uuid"),
        flag("wipeVolume"),
    ],
);

static CEX: Schema = schema(&[flag("enabled")]);

static CLEVIS: Schema =
    schema(&[object("custom", &CLEVIS_CUSTOM), objects("tang", &TANG), number("threshold"), flag("tpm2")]);

static CLEVIS_CUSTOM: Schema = schema(&[plain_text("config", 3), flag("needsNetwork"), plain_text("pin", 3)]);

static TANG: Schema =
    keyed("url", &[field("advertisement", 4, Shape::Text), text("thumbprint"), plain_text("url", u8::MAX)]);

static SYSTEMD: Schema = schema(&[objects("units", &UNIT)]);

static UNIT: Schema =
    keyed("name", &[text("contents"), objects("dropins", &DROPIN), flag("enabled"), flag("mask"), required("name")]);

static DROPIN: Schema = keyed("name", &[text("contents"), required("name")]);
