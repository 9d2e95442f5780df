// Lists of names: one name for each value of an enumeration, in the enumeration's order, then NULL.
#pragma once

// The index of a name in the list; -1 if it is not there.
int name_index(const char *const *names, const char *name);

// The names joined, as in "constant|linear|cosine"; the caller frees the text.
char *names_joined(const char *const *names);
