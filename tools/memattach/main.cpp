#include <cstdio>

int main() {
    std::fputs("memattach: no process given\n", stderr);
    return 2;
}
