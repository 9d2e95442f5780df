// Lists of names that end with NULL: of the values of an enumeration, in their order.
#pragma once

// The index of a name in the list; -1 if it is not there.
int name_index(const char *const *names, const char *name);

// "constant|linear|cosine": the list as text, for the caller to free.
char *names_joined(const char *const *names);
