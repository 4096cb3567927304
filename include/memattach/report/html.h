#pragma once

#include <string>
#include <string_view>

#include "memattach/profile/profile.h"

namespace memattach::report {

/// The profile as one page that needs nothing else: the profile's JSON as data, with a script and a style
/// sheet that were embedded when memattach was built (src/report/html). Nothing is loaded from anywhere, and
/// the page's own content security policy allows no other script than that one. Everything from the target is
/// inside the JSON, where "<" is escaped, and in the title.
[[nodiscard]] std::string to_html(const profile::Profile& profile);

/// `text` fit for HTML's text and quoted attributes, as valid UTF-8.
[[nodiscard]] std::string html_escaped(std::string_view text);

/// JSON fit for the inside of a script element: "<", ">", "&", U+2028 and U+2029 as \u escapes.
[[nodiscard]] std::string script_escaped(std::string_view json);

namespace html_assets {
extern const char* const kPage;
extern const char* const kStyle;
extern const char* const kScript;
extern const char* const kStyleSha256;  ///< hexadecimal
extern const char* const kScriptSha256;
}  // namespace html_assets

}  // namespace memattach::report
