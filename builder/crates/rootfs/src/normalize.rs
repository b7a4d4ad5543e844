//! What modes and owners become in an image, whatever a package or a checkout had.
//!
//! Order and times need nothing: trees are sorted, and writers take one time for all.

use crate::tree::{Meta, Node, Tree};

/// Whom entries belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Whom they belong to in the tree.
    Keep,
    /// All to one user and group.
    All {
        /// The user ID.
        uid: u32,
        /// The group ID.
        gid: u32,
    },
}

/// Gives every entry, the root included, the form that it has in images: permission bits within 0o7777, 0o777 for
/// symbolic links, and the owners that `owners` says. Where all belong to one owner that is not theirs, the
/// set-user-ID and set-group-ID bits of files that change hands are dropped, as `chown` does.
pub fn normalize(tree: &mut Tree, owners: Owners) {
    normalize_meta(&mut tree.root_mut().meta, owners, false);
    tree.for_each_mut(|_, node| {
        let is_file = matches!(node, Node::File { .. });
        let is_link = matches!(node, Node::Symlink { .. });
        let meta = node.meta_mut();
        normalize_meta(meta, owners, is_file);
        if is_link {
            meta.mode = 0o777;
        }
    });
}

fn normalize_meta(meta: &mut Meta, owners: Owners, is_file: bool) {
    meta.mode &= 0o7777;
    if let Owners::All { uid, gid } = owners {
        if is_file && (meta.uid, meta.gid) != (uid, gid) {
            meta.mode &= 0o1777;
        }
        (meta.uid, meta.gid) = (uid, gid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_owners() {
        let mut tree = Tree::new();
        let owned = |mode, uid| Meta { mode, uid, ..Meta::default() };
        let content = || crate::Content::Inline((*b"x").into());
        tree.root_mut().meta = owned(0o40755, 1000);
        tree.insert("theirs", Node::File { meta: owned(0o104755, 1000), content: content() }).unwrap();
        tree.insert("roots", Node::File { meta: owned(0o4755, 0), content: content() }).unwrap();
        tree.insert("link", Node::Symlink { meta: owned(0o600, 7), target: b"x".to_vec() }).unwrap();
        let mut kept = tree.clone();
        normalize(&mut kept, Owners::Keep);
        normalize(&mut tree, Owners::All { uid: 0, gid: 0 });
        for (tree, path, expected) in [
            (&kept, "theirs", owned(0o4755, 1000)),
            (&kept, "link", owned(0o777, 7)),
            (&tree, "theirs", owned(0o755, 0)),
            (&tree, "roots", owned(0o4755, 0)),
            (&tree, "link", owned(0o777, 0)),
        ] {
            assert_eq!(tree.lookup(path).unwrap().meta(), &expected, "{path}");
        }
        assert_eq!(kept.root().meta, owned(0o755, 1000));
        assert_eq!(tree.root().meta, owned(0o755, 0));
    }
}
