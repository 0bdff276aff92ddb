from clasp_kernels.cli import main

main()
